/** What the page shows: the picture, messages, hints and figures. It asks for nothing. */

/** @import { Snapshot, Student, TransportName } from "./types.d.ts" */
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
const glow = /** @type {HTMLCanvasElement} */ (element("glow"));

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
  if (trouble?.kind === "restarting") return { title: "The server restarts", detail: "Your world waits and goes on by itself.", busy: true };
  if (trouble?.kind === "unreachable")
    return { title: "The server does not answer", detail: `Is it running, and are you online? ${soon}`, action: "Try now" };
  if (trouble?.kind === "refused") return { title: "This did not work", detail: sentence(trouble.detail), action: "Try again" };
  if (state === "connecting") return { title: "Opening a world", busy: true };
  if (state === "reconnecting" || trouble) return { title: "Finding the way back", detail: "The connection was lost.", busy: true };
  if (state === "paused") return { title: "Paused", detail: "The world stands still until you press a key.", action: "Walk on" };
  return null;
}

/** @param {string} text */
function sentence(text) {
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

/** @param {Snapshot} snapshot */
export function showState(snapshot) {
  const { state, session, transport, trouble } = snapshot;
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
  studentField.disabled = state === "playing"; // a key that was meant for the world would choose another one
  setText("pause", state === "paused" ? "Walk on" : "Pause");
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
 * @param {string | undefined} chosen name
 */
export function showStudents(students, chosen) {
  studentField.replaceChildren(...students.map(({ name }) => new Option(name)));
  if (chosen) studentField.value = chosen; // nothing, where the server has no such student
  element("choice").hidden = students.length < 2;
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
  setText("notice", text);
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

/** The room is lit by the picture: a few pixels of it, drawn large behind everything. */
export function lightRoom() {
  const context = glow.getContext("2d", { alpha: false });
  if (!context || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  setInterval(() => {
    if (document.body.dataset.state !== "playing" || document.hidden) return;
    context.globalAlpha = 0.35; // follows slowly
    context.drawImage(picture, 0, 0, glow.width, glow.height);
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
