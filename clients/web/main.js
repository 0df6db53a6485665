/**
 * The page: connects keys, pads, buttons and what is said to the player, and the player to what is seen and heard.
 *
 * `?transport=websocket` does without WebRTC, with `&video=h264` or `&video=jpeg` as is preferred; `?student=NAME`,
 * `?identity=NAME` (of an avatar) and `?seed=NUMBER` choose what is shown.
 *
 * For tests and benchmarks, `window.streamgen.stats()` returns (see `Stats` in types.d.ts):
 *   state            idle, connecting, playing, paused, reconnecting, waiting or failed
 *   transport        "webrtc", "websocket", or null while there is no link
 *   broke            why the last connections ended or none was had, oldest first
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
 *   audioLevel       of what an avatar says now, whether it is heard or not: 0 to 1
 *   heard            whether that comes out of the loudspeaker
 *   microphoneLevel  of what the person says now: 0 to 1
 *   microphone       "off", "on", or "refused" by the person, the browser or the machine
 */

/** @import { Stats, Student, Wish } from "./types.d.ts" */

import { listenToGamepads } from "./gamepad.js";
import { Keys, listenToKeyboard } from "./input.js";
import { likenessOf } from "./likeness.js";
import { listenToPad } from "./pad.js";
import { Player } from "./player.js";
import { endSession, fetchDevice, fetchLog, fetchStudents, recall, rememberKey, withPicture } from "./session.js";
import { Meter } from "./stats.js";
import { Talk } from "./talk.js";
import * as view from "./view.js";

const query = new URLSearchParams(location.search);
const wish = withPicture({
  student: query.get("student") ?? undefined,
  seed: seedOf(query.get("seed")),
  identity: query.get("identity") ?? undefined,
});
/** Who it was, while a picture is not taken yet. @type {Pick<Wish, "identity" | "reference"> | null} */
let before = null;
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

const talk = new Talk({
  notice: view.showNotice,
  changed: () => view.showTalk(talk.microphone, talk.heard),
  level: view.showLevel,
});

const player = new Player(
  {
    video: view.video,
    canvas: view.canvas,
    held: () => keys.held,
    arrived: view.showPicture,
    hold: view.holdPicture,
    notice: view.showNotice,
    linked: (link) => talk.linked(link),
    changed: (snapshot) => {
      keys.allow(snapshot.session?.student.keys ?? []);
      view.showState(snapshot);
      view.showFigures(meter);
      if (snapshot.state === "playing") before = null;
      else if (before && snapshot.trouble?.kind === "refused") setTimeout(becomeAgain, 0, before, snapshot.trouble.detail);
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

/** The session, if it is an avatar's that plays or was paused. */
function avatar() {
  const { session } = player.snapshot;
  return session?.student.speech && (state() === "playing" || state() === "paused") ? session : null;
}

/** Whoever is spoken to goes on. */
function conversation() {
  const session = avatar();
  if (session && state() === "paused") player.resume();
  return session;
}

function toggleMicrophone() {
  if (conversation()) talk.toggleMicrophone();
}

function interrupt() {
  const session = avatar();
  if (session) talk.interrupt(session);
}

/** @param {File | undefined} file */
function playFile(file) {
  const session = conversation();
  if (session && file) talk.play(session, file);
}

/**
 * Begin anew as somebody else.
 * @param {Pick<Wish, "identity" | "reference">} whom
 */
function become({ identity, reference }) {
  before = reference ? { identity: wish.identity, reference: wish.reference } : null;
  wish.identity = identity;
  wish.reference = reference;
  if (identity) query.set("identity", identity);
  else query.delete("identity");
  history.replaceState(null, "", `?${query}`);
  if (state() === "failed") walkIn(performance.now()); // as somebody who may do
  else player.another({ ...wish });
}

/**
 * A picture was refused: whoever it was goes on.
 * @param {Pick<Wish, "identity" | "reference">} whom
 * @param {string} why
 */
function becomeAgain(whom, why) {
  before = null;
  become(whom);
  view.showStudents(students, wish);
  view.showNotice(why);
}

/** @param {File | undefined} file */
async function becomeLikeness(file) {
  const student = students.find(({ name }) => name === (wish.student ?? students[0]?.name));
  if (!file) return;
  if (!student?.reference) return view.showNotice("Nobody here takes a picture to be.");
  const reference = await likenessOf(file, student).catch(() => null);
  if (reference === null) return view.showNotice("This is no picture that the browser can read.");
  if (view.likenessButton.disabled) return;
  become({ reference });
  view.identityField.value = "";
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
  ["microphone", toggleMicrophone],
  ["choose", () => view.fileField.click()],
  ["likeness", () => view.pictureField.click()],
  ["interrupt", interrupt],
  ["heard", () => talk.toggleHeard()],
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

view.element("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const session = conversation();
  const text = view.textField.value.trim();
  if (!session || !text) return;
  view.textField.value = "";
  if (!(await talk.say(session, text)) && !view.textField.value) view.textField.value = text;
});

view.fileField.addEventListener("change", () => {
  playFile(view.fileField.files?.[0]);
  view.fileField.value = ""; // or the same file could not be chosen again
});

view.pictureField.addEventListener("change", () => {
  becomeLikeness(view.pictureField.files?.[0]);
  view.pictureField.value = "";
});

// Anywhere on the page: beside the picture, the browser would leave the page for the file.
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    const { dataTransfer } = /** @type {DragEvent} */ (event);
    if (document.body.dataset.kind !== "avatar" || !dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    view.showDrop(kind === "dragover" && avatar() !== null);
    if (kind !== "drop") return;
    const [file] = dataTransfer.files;
    if (file?.type.startsWith("image/")) becomeLikeness(file);
    else playFile(file);
  });
}

const NOT_A_START = /^(Tab|Escape|Meta|Control|Alt|Shift|CapsLock|F\d+$)/;
/** @type {Record<string, () => void>} */
const shortcuts = { KeyP: togglePause, KeyN: newWorld, KeyF: toggleFullScreen };
/** Where no key steers, they have more to say. @type {Record<string, () => void>} */
const talkShortcuts = { ...shortcuts, KeyM: toggleMicrophone, KeyI: interrupt, Escape: interrupt };

listenToKeyboard(keys, (event) => {
  const speech = document.body.dataset.kind === "avatar";
  if (state() === "idle" && !speech && !NOT_A_START.test(event.code)) {
    walkIn(event.timeStamp);
    return false; // a key that also steers is held from the first frame on
  }
  if (keys.knows(event.code)) return false;
  const known = speech ? talkShortcuts : shortcuts;
  known[event.code]?.();
  return event.code in known;
});
listenToPad(view.element("pad"), keys);
listenToGamepads(keys, (at) => state() === "idle" && walkIn(at), view.showGamepad);
view.lightRoom();
fetchDevice().then(view.showDevice);
/** The server's. @type {Student[]} */
let students = [];
fetchStudents().then((found) => {
  students = found;
  view.showStudents(students, wish);
});
view.studentField.addEventListener("change", () => {
  const session = recall(wish);
  player.leave(); // or it would take the session's end for a fault, and open another one
  if (session) endSession(session);
  query.set("student", view.studentField.value);
  query.delete("identity"); // of the other one
  location.search = String(query);
});
view.identityField.addEventListener("change", () => become({ identity: view.identityField.value }));

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
    broke: player.broke,
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
    audioLevel: talk.level,
    microphoneLevel: talk.microphoneLevel,
    heard: talk.heard,
    microphone: talk.microphone,
  };
}

window.streamgen = { stats };
