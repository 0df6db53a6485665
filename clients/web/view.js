/** What the page shows: the picture, messages, hints and figures. It asks for nothing. */

/** @import { MicrophoneState, Snapshot, Student, TransportName, Wish } from "./types.d.ts" */
/** @import { Meter } from "./stats.js" */

const NOTICE_MS = 6_000;
const GLOW_MS = 200;
/** Within it the browser has begun to save a file. */
const SAVED_MS = 60_000;

const TRANSPORTS = { webrtc: "WebRTC", websocket: "WebSocket" };

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
export function element(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found;
}

export const video = /** @type {HTMLVideoElement} */ (element("video"));
export const canvas = /** @type {HTMLCanvasElement} */ (element("canvas"));
export const keyField = /** @type {HTMLInputElement} */ (element("key"));
export const studentField = /** @type {HTMLSelectElement} */ (element("student"));
export const identityField = /** @type {HTMLSelectElement} */ (element("identity"));
export const textField = /** @type {HTMLInputElement} */ (element("text"));
export const likenessButton = /** @type {HTMLButtonElement} */ (element("likeness"));
export const pictureField = /** @type {HTMLInputElement} */ (element("picture"));
export const fileField = /** @type {HTMLInputElement} */ (element("file"));
const glow = /** @type {HTMLCanvasElement} */ (element("glow"));

/** What is said differently about a student of keys and about one that speaks. */
const KINDS = {
  world: {
    page: "streamgen – walk in",
    stage: "The world",
    opening: "Opening a world",
    waits: "Your world waits and goes on by itself.",
    still: "The world stands still until you press a key.",
    resume: "Walk on",
    unlock: "Walk in",
    anew: "New world",
  },
  avatar: {
    page: "streamgen – talk",
    stage: "The avatar",
    opening: "Opening the stage",
    waits: "Your stream waits and goes on by itself.",
    still: "Nobody moves until you go on.",
    resume: "Go on",
    unlock: "Begin",
    anew: "New take",
  },
};

/** @type {keyof typeof KINDS} */
let kind = "world";

/** @param {Student} student */
function showKind({ speech }) {
  kind = speech ? "avatar" : "world";
  if (document.body.dataset.kind === kind) return;
  document.body.dataset.kind = kind;
  document.title = KINDS[kind].page;
  element("stage").setAttribute("aria-label", KINDS[kind].stage);
  setText("unlocks", KINDS[kind].unlock);
  setText("renew", KINDS[kind].anew);
}

/**
 * @typedef {object} Words what a person reads over the picture
 * @property {string} title
 * @property {string} [detail]
 * @property {string} [action] label of the button
 * @property {boolean} [busy]
 */

/**
 * @param {Snapshot} snapshot
 * @returns {Words | null}
 */
function words({ state, trouble }) {
  const soon = trouble?.seconds ? `Trying again in ${trouble.seconds} s.` : "Trying now …";
  if (trouble?.kind === "full")
    return { title: "Every place is taken", detail: `This server has no room for one more right now. ${soon}`, action: "Try now" };
  if (trouble?.kind === "limited") return { title: "Not now", detail: `${sentence(trouble.detail)} ${soon}`, action: "Try now" };
  if (trouble?.kind === "locked") return { title: "This server asks for a key", detail: trouble.detail && sentence(trouble.detail) };
  if (trouble?.kind === "starting") return { title: "The server is waking up", detail: `Its network is being loaded. ${soon}`, busy: true };
  if (trouble?.kind === "restarting") return { title: "The server restarts", detail: KINDS[kind].waits, busy: true };
  if (trouble?.kind === "unreachable")
    return { title: "The server does not answer", detail: `Is it running, and are you online? ${soon}`, action: "Try now" };
  if (trouble?.kind === "refused") return { title: "This did not work", detail: sentence(trouble.detail), action: "Try again" };
  if (state === "connecting") return { title: KINDS[kind].opening, busy: true };
  if (state === "reconnecting" || trouble) return { title: "Finding the way back", detail: "The connection was lost.", busy: true };
  if (state === "paused") return { title: "Paused", detail: KINDS[kind].still, action: KINDS[kind].resume };
  return null;
}

/** @param {string} text */
function sentence(text) {
  const end = /[.!?…]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

/** @param {Snapshot} snapshot */
export function showState(snapshot) {
  const { state, session, transport, trouble } = snapshot;
  if (session) showKind(session.student);
  document.body.dataset.state = state;
  const said = words(snapshot);
  document.body.classList.toggle("speaking", said !== null);
  document.body.classList.toggle("busy", said?.busy ?? false);
  if (said) {
    setText("title", said.title);
    setText("detail", said.detail ?? "");
    const action = element("action");
    action.hidden = !said.action;
    setText("action", said.action ?? "");
  }
  const asks = trouble?.kind === "locked";
  if (element("unlock").hidden === asks) {
    element("unlock").hidden = !asks;
    if (asks) keyField.focus();
  }
  const walking = state === "playing" || state === "paused";
  for (const id of ["pause", "renew", "log"]) /** @type {HTMLButtonElement} */ (element(id)).disabled = !walking;
  /** @type {HTMLFieldSetElement} */ (element("talk")).disabled = !walking;
  studentField.disabled = state === "playing" && kind === "world"; // a key that was meant for it would choose another one
  identityField.disabled = likenessButton.disabled = !(walking || state === "idle" || state === "failed");
  setText("pause", state === "paused" ? KINDS[kind].resume : "Pause");
  element("link").hidden = !transport;
  setText("transport", transport ? TRANSPORTS[transport] : "");
  setText("seed", session ? String(session.seed) : "–");
  if (!session) return;
  const { keys, width, height } = session.student;
  document.documentElement.style.setProperty("--ratio", String(width / height));
  for (const part of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-code]"))) {
    part.hidden = !keys.includes(part.dataset.code ?? "");
  }
}

/** @param {Meter} meter */
export function showFigures(meter) {
  setText("fps", meter.fps.toFixed(1));
  const { lastLatencyMs: last, medianLatencyMs: median } = meter;
  setText("latency", last === null || median === null ? "–" : `${last.toFixed(0)} ms, median ${median.toFixed(0)}`);
  setText("age", meter.frameAgeMs === null ? "–" : `${meter.frameAgeMs.toFixed(0)} ms`);
  setText("bitrate", meter.bitrateKbps.toFixed(0));
  setText("steps", meter.status ? String(meter.status.steps) : "–");
}

/** @param {string | null} device */
export function showDevice(device) {
  if (device) setText("device", ` on ${device.replace(/\((R|TM)\)/g, "")}`);
}

/**
 * A choice, where there is one.
 * @param {Student[]} students the server's, its own choice first
 * @param {Wish} wish
 */
export function showStudents(students, { student, identity, reference }) {
  offer(studentField, students.map(({ name }) => name), student);
  if (students.some(({ speech }) => speech)) setText("student-label", "Show");
  const shown = student ? students.find(({ name }) => name === student) : students[0];
  offer(identityField, shown?.identities ?? [], identity);
  if (reference) identityField.value = ""; // nobody of the student's
  likenessButton.closest("p")?.toggleAttribute("hidden", !shown?.reference);
  if (shown) showKind(shown);
  else document.body.dataset.kind ??= kind; // it is not known what will be shown, and a welcome is due
}

/**
 * @param {HTMLSelectElement} field
 * @param {string[]} names
 * @param {string | undefined} chosen
 */
function offer(field, names, chosen) {
  field.replaceChildren(...names.map((name) => new Option(name)));
  if (chosen) field.value = chosen; // nothing, where the server has no such name
  field.closest("p")?.toggleAttribute("hidden", names.length < 2);
}

/**
 * @param {MicrophoneState} microphone
 * @param {boolean} heard
 */
export function showTalk(microphone, heard) {
  press("microphone", microphone === "on");
  press("heard", heard);
  if (microphone !== "on") showLevel(0);
}

/**
 * @param {string} id of a button that stays down
 * @param {boolean} down
 */
function press(id, down) {
  element(id).setAttribute("aria-pressed", String(down));
}

/** Of the microphone. @param {number} level 0 to 1 */
export function showLevel(level) {
  element("level").style.setProperty("--level", level.toFixed(2));
}

/** @param {boolean} held a file hangs over the page */
export function showDrop(held) {
  document.body.classList.toggle("dropping", held);
}

/** @param {readonly string[]} held */
export function showHeld(held) {
  for (const part of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-code]"))) {
    part.classList.toggle("held", held.includes(part.dataset.code ?? ""));
  }
}

/** @param {boolean} connected */
export function showGamepad(connected) {
  element("gamepad").hidden = !connected;
}

let noticeTimer = 0;
/** @param {string} text */
export function showNotice(text) {
  setText("notice", sentence(text));
  element("notice").classList.add("shown");
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => element("notice").classList.remove("shown"), NOTICE_MS);
}

/** @param {{ name: string, content: Blob }} file */
export function saveFile({ name, content }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), SAVED_MS);
}

/** The element that carries the picture now. @type {HTMLVideoElement | HTMLCanvasElement} */
let picture = video;

/** @param {TransportName} transport */
export function showPicture(transport) {
  picture = transport === "webrtc" ? video : canvas;
  video.classList.toggle("shown", picture === video);
  canvas.classList.toggle("shown", picture === canvas);
}

/** Keeps the last frame of a link that is gone, on the canvas. */
export function holdPicture() {
  if (picture !== video || !video.videoWidth) return;
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d", { alpha: false })?.drawImage(video, 0, 0);
  video.classList.remove("shown");
  canvas.classList.add("shown");
}

/**
 * The room is lit by the picture: a few pixels of it, drawn large behind everything and fainter towards the edge. They fade
 * in the canvas itself: a mask of CSS is worked out anew for every frame of the picture, which costs a browser without a GPU
 * 30% of a core.
 */
export function lightRoom() {
  const { width, height } = glow;
  const context = glow.getContext("2d");
  const light = new OffscreenCanvas(width, height).getContext("2d", { alpha: false });
  if (!context || !light || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const fade = context.createRadialGradient(1, 1, 0, 1, 1, 1);
  fade.addColorStop(0, "#000");
  fade.addColorStop(1, "#0000");
  light.globalAlpha = 0.35; // follows slowly
  context.fillStyle = fade;
  context.scale(width / 2, height / 2);
  setInterval(() => {
    if (document.body.dataset.state !== "playing" || document.hidden) return;
    light.drawImage(picture, 0, 0, width, height);
    context.globalCompositeOperation = "copy";
    context.drawImage(light.canvas, 0, 0, 2, 2);
    context.globalCompositeOperation = "destination-in";
    context.fillRect(0, 0, 2, 2);
    glow.classList.add("lit");
  }, GLOW_MS);
}

/**
 * @param {string} id
 * @param {string} text
 */
function setText(id, text) {
  const target = element(id);
  if (target.textContent !== text) target.textContent = text;
}
