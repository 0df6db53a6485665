/**
 * The page: connects keys, pads and buttons to the player, and the player to what is seen.
 *
 * `?transport=websocket` does without WebRTC, with `&video=h264` or `&video=jpeg` as is preferred; `?student=NAME` and
 * `?seed=NUMBER` choose the world.
 *
 * For tests and benchmarks, `window.streamgen.stats()` returns (see `Stats` in types.d.ts):
 *   state            idle, connecting, playing, paused, reconnecting, waiting or failed
 *   transport        "webrtc", "websocket", or null while there is no link
 *   session, seed    of the stream
 *   fps, bitrateKbps over the last three seconds; decoded frames, and all bytes of the media
 *   framesDecoded    since the page was loaded, over all links
 *   freezes, freezeSeconds   as getStats counts them (WebSocket: the same rule), those of a pause or a new world left out
 *   firstFrameMs     from the click (after a reload: from the start of the page) to the first frame on the screen
 *   inputToPhotonMs  for each of the last 512 inputs: from the DOM event to the frame that the server named in its
 *                    acknowledgement; by expectedDisplayTime on WebRTC, by the time it was drawn on a WebSocket
 *   frameAgeMs       how long ago the frame on the screen was due on the server's media clock, whose offset comes from
 *                    acknowledgements and the round trip; a running mean
 *   roundTripMs      of the last ping
 *   frame, dropped, steps, stepMs   from the server's last status
 */

/** @import { Stats, Wish } from "./types.d.ts" */

import { listenToGamepads } from "./gamepad.js";
import { Keys, listenToKeyboard } from "./input.js";
import { listenToPad } from "./pad.js";
import { Player } from "./player.js";
import { endSession, fetchDevice, fetchLog, fetchStudents, recall, rememberKey } from "./session.js";
import { Meter } from "./stats.js";
import * as view from "./view.js";

const query = new URLSearchParams(location.search);
/** @type {Wish} */
const wish = { student: query.get("student") ?? undefined, seed: seedOf(query.get("seed")) };
const meter = new Meter();

const keys = new Keys(
  (edge) => {
    player.steer(edge);
    view.showHeld(keys.held);
  },
  () => {
    player.release();
    view.showHeld([]);
  },
);

const player = new Player(
  {
    video: view.video,
    canvas: view.canvas,
    held: () => keys.held,
    arrived: view.showPicture,
    hold: view.holdPicture,
    notice: view.showNotice,
    changed: (snapshot) => {
      keys.allow(snapshot.session?.student.keys ?? []);
      view.showState(snapshot);
      view.showFigures(meter);
    },
  },
  meter,
  query.get("transport") === "websocket" ? "websocket" : "webrtc",
  query.get("video"),
);

/** @param {string | null} text */
function seedOf(text) {
  const seed = Number.parseInt(text ?? "", 10);
  return Number.isSafeInteger(seed) && seed >= 0 ? seed : undefined;
}

const state = () => player.snapshot.state;

/** @param {number} at */
function walkIn(at) {
  player.start(wish, recall(wish), at);
  focusStage();
}

function togglePause() {
  if (state() === "playing") player.pause();
  else if (state() === "paused") player.resume();
}

function newWorld() {
  player.newWorld(crypto.getRandomValues(new Uint32Array(1))[0]);
}

function saveLog() {
  const { session } = player.snapshot;
  if (session) fetchLog(session).then(view.saveFile, () => view.showNotice("The server does not give the log now."));
}

function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen({ navigationUI: "hide" }).catch(() => view.showNotice("No full screen here."));
}

/** The button of the message over the picture. */
function act() {
  if (state() === "waiting") player.tryNow();
  else if (state() === "paused") player.resume();
  else walkIn(performance.now());
}

/** Keys go to the world, not to the button that was clicked last. */
function focusStage() {
  view.element("stage").focus({ preventScroll: true });
}

/** @type {[string, () => void][]} */
const buttons = [
  ["enter", () => walkIn(performance.now())],
  ["action", act],
  ["pause", togglePause],
  ["renew", newWorld],
  ["log", saveLog],
  ["full", toggleFullScreen],
];
for (const [id, pressed] of buttons) {
  view.element(id).addEventListener("click", (event) => {
    pressed();
    if (event.detail > 0) focusStage(); // by a pointer; a keyboard keeps its place
  });
}

view.element("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(view.keyField.value.trim());
  view.keyField.value = "";
  walkIn(performance.now());
});

const NOT_A_START = /^(Tab|Escape|Meta|Control|Alt|Shift|CapsLock|F\d+$)/;
/** @type {Record<string, () => void>} */
const shortcuts = { KeyP: togglePause, KeyN: newWorld, KeyF: toggleFullScreen };

listenToKeyboard(keys, (event) => {
  if (state() === "idle" && !NOT_A_START.test(event.code)) {
    walkIn(event.timeStamp);
    return false; // a key that also steers is held from the first frame on
  }
  if (keys.knows(event.code)) return false;
  shortcuts[event.code]?.();
  return event.code in shortcuts;
});
listenToPad(view.element("pad"), keys);
listenToGamepads(keys, (at) => state() === "idle" && walkIn(at), view.showGamepad);
view.lightRoom();
fetchDevice().then(view.showDevice);
fetchStudents().then((students) => view.showStudents(students, wish.student));
view.studentField.addEventListener("change", () => {
  const session = recall(wish);
  player.leave(); // or it would take the session's end for a fault, and open another one
  if (session) endSession(session);
  query.set("student", view.studentField.value);
  location.search = String(query);
});

addEventListener("visibilitychange", () => player.unseen(document.hidden));
addEventListener("pagehide", () => player.leave());
addEventListener("pageshow", (event) => {
  // A reload, or a page brought back by the browser's own history, returns to its stream.
  const session = recall(wish);
  if (session) player.start(wish, session, event.persisted ? performance.now() : 0);
  else if (event.persisted) location.reload(); // its stream has ended since
});

/** @returns {Stats} */
function stats() {
  const { state, transport, session } = player.snapshot;
  const { fps, framesDecoded, freezes, freezeSeconds, firstFrameMs, frameAgeMs, roundTripMs, bitrateKbps, status } = meter;
  return {
    state,
    transport,
    session: session?.id ?? null,
    seed: session?.seed ?? null,
    fps,
    framesDecoded,
    freezes,
    freezeSeconds,
    firstFrameMs,
    inputToPhotonMs: [...meter.inputToPhotonMs],
    frameAgeMs,
    roundTripMs,
    bitrateKbps,
    frame: status?.frame ?? null,
    dropped: status?.dropped ?? 0,
    steps: status?.steps ?? null,
    stepMs: status?.step_ms ?? null,
  };
}

window.streamgen = { stats };
