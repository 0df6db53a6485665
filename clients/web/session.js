/** The session over HTTP, and its memory across a reload of the page. */

/** @import { ErrorBody, Moment, Session, Student, Wish } from "./types.d.ts" */

const STORAGE_KEY = "streamgen.session";
const API_KEY_KEY = "streamgen.key";
const REQUEST_TIMEOUT_MS = 10_000;
const LOG_TIMEOUT_MS = 300_000;
/** The server answers when it knows how the last sentence sounds. */
const SAY_TIMEOUT_MS = 120_000;

/** The server answered, and the answer is no. */
export class Refused extends Error {
  /**
   * @param {number} status
   * @param {ErrorBody} body
   * @param {number | null} retryAfterS
   */
  constructor(status, body, retryAfterS) {
    super(body.message);
    this.status = status;
    this.code = body.code;
    this.retryable = body.retryable;
    this.retryAfterS = retryAfterS;
  }

  /** No room now, but later. */
  get full() {
    return this.status === 503 || this.status === 429;
  }

  /** A session cannot be opened without an API key, or not with this one. */
  get locked() {
    return this.code === "key_needed" || this.code === "key_unknown";
  }

  /** The session is unknown, has ended, or is not ours. */
  get gone() {
    return this.status === 401 || this.status === 404 || this.status === 410;
  }
}

/** The server did not answer. */
export class Unreachable extends Error {}

/**
 * @param {string} path below the page's own address, so that the page also works behind a proxy's prefix
 * @param {RequestInit} options
 * @param {string | null} [secret] the session's token, or the API key that opens sessions
 * @returns {Promise<Response>} only for 2xx; anything else throws
 */
export async function request(path, options, secret) {
  const headers = new Headers(options.headers);
  if (secret) headers.set("Authorization", `Bearer ${secret}`);
  let response;
  try {
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
    response = await fetch(new URL(path, document.baseURI), { cache: "no-store", signal, ...options, headers });
  } catch (cause) {
    throw new Unreachable("the server does not answer", { cause });
  }
  if (response.ok) return response;
  throw await refusal(response);
}

/** @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Refused(
    response.status,
    {
      code: error.code ?? `http_${response.status}`,
      message: error.message ?? `the server answered ${response.status}`,
      retryable: error.retryable ?? response.status >= 500,
    },
    Number.isFinite(after) ? after : null,
  );
}

/** @returns {Promise<string | null>} name of the processor that generates the frames; null when the server does not say */
export async function fetchDevice() {
  try {
    const response = await request("readyz", { method: "GET" });
    return (await response.json()).device ?? null;
  } catch {
    return null; // not ready yet
  }
}

/** @returns {Promise<Student[]>} what the server generates; nothing when it does not say */
export async function fetchStudents() {
  try {
    const response = await request("v1/students", { method: "GET" });
    return (await response.json()).students;
  } catch {
    return []; // it is not there yet; there is nothing to choose then
  }
}

/** @param {string} id */
const pathOf = (id) => `v1/sessions/${encodeURIComponent(id)}`;

/**
 * @param {Wish} wish
 * @returns {Promise<Session>}
 */
export async function createSession(wish) {
  const response = await request("v1/sessions", postJson(wish), apiKey);
  const { id, token, seed, student, ice_servers } = await response.json();
  return remember({ id, token, seed, student, ice_servers, wish });
}

/**
 * Asks whether the session still lives.
 * @param {Session} session
 * @returns {Promise<Session>} as it is now: its seed may be another one
 */
export async function checkSession(session) {
  const response = await request(pathOf(session.id), { method: "GET" }, session.token);
  const { seed } = await response.json();
  return remember({ ...session, seed });
}

/**
 * Gives the session's place back; sent even while the page is being closed.
 * @param {Session} session
 * @returns {Promise<void>} the server has heard of it, or does not answer
 */
export function endSession(session) {
  forget();
  return leave(pathOf(session.id), session);
}

/**
 * Starts the stream anew from `seed`.
 * @param {Session} session
 * @param {number} seed
 */
export async function resetSession(session, seed) {
  await request(`${pathOf(session.id)}/reset`, postJson({ seed }), session.token);
  return remember({ ...session, seed });
}

/**
 * Lets an avatar say a text, after all that it still has to say.
 * @param {Session} session
 * @param {string} text
 */
export async function say(session, text) {
  const signal = AbortSignal.timeout(SAY_TIMEOUT_MS);
  await request(`${pathOf(session.id)}/say`, { ...postJson({ text }), signal }, session.token);
}

/**
 * Lets an avatar say what is heard in a file.
 * @param {Session} session
 * @param {Blob} file
 */
export async function saySound(session, file) {
  const signal = AbortSignal.timeout(SAY_TIMEOUT_MS);
  await request(`${pathOf(session.id)}/sound`, { method: "POST", body: file, signal }, session.token);
}

/**
 * Lets an avatar fall silent.
 * @param {Session} session
 * @returns {Promise<Moment>} from which on nothing is shown that was to be said before
 */
export async function interrupt(session) {
  const response = await request(`${pathOf(session.id)}/interrupt`, { method: "POST" }, session.token);
  const { generation, frame } = await response.json();
  return { generation, frame };
}

/**
 * @param {Session} session
 * @returns {Promise<{ name: string, content: Blob }>} the session's log, as a file
 */
export async function fetchLog(session) {
  const response = await request(`${pathOf(session.id)}/log`, { method: "GET", signal: AbortSignal.timeout(LOG_TIMEOUT_MS) }, session.token);
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "session.jsonl";
  return { name, content: await response.blob() };
}

/**
 * @param {Session} session
 * @param {string} offer SDP
 * @returns {Promise<{ answer: string, peer: string | null }>} peer: address of the server's end, for `deletePeer`
 */
export async function postOffer(session, offer) {
  const headers = { "Content-Type": "application/sdp" };
  const path = `${pathOf(session.id)}/webrtc`;
  const response = await request(path, { method: "POST", headers, body: offer }, session.token);
  const name = response.headers.get("Location")?.split("/").pop();
  return { answer: await response.text(), peer: name ? `${path}/${name}` : null };
}

/**
 * Ends the server's end of a WebRTC link; sent even while the page is being closed.
 * @param {Session} session
 * @param {string} peer
 */
export function deletePeer(session, peer) {
  leave(peer, session);
}

/**
 * @param {string} path
 * @param {Session} session
 */
async function leave(path, session) {
  await request(path, { method: "DELETE", keepalive: true }, session.token).catch(() => {
    // It is being left either way: the server also notices by the silence.
  });
}

/** @param {Session} session */
export function streamAddress(session) {
  const address = new URL(`${pathOf(session.id)}/stream`, document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address;
}

/**
 * @param {Wish} wish
 * @returns {Session | null} the session that this tab had before it was reloaded, if the same was asked for
 */
export function recall(wish) {
  try {
    const session = JSON.parse(load(STORAGE_KEY) ?? "null");
    return JSON.stringify(session?.wish) === JSON.stringify(wish) ? session : null;
  } catch {
    return null; // not ours
  }
}

/**
 * @param {Wish} wish as the page's address has it, which does not carry a picture
 * @returns {Wish} the same, with the picture of the session that this tab had before it was reloaded, if all else is the same
 */
export function withPicture(wish) {
  try {
    const before = { ...wish, reference: JSON.parse(load(STORAGE_KEY) ?? "null")?.wish?.reference };
    return recall(before) ? before : wish;
  } catch {
    return wish; // not ours
  }
}

export function forget() {
  save(STORAGE_KEY, null);
}

/** What opens sessions on a server that wants a key; kept for this tab. */
let apiKey = load(API_KEY_KEY);

/** @param {string} key */
export function rememberKey(key) {
  apiKey = key;
  save(API_KEY_KEY, key);
}

/**
 * @template {Session} S
 * @param {S} session
 */
function remember(session) {
  save(STORAGE_KEY, JSON.stringify(session));
  return session;
}

/** @param {string} name */
function load(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null; // storage switched off
  }
}

/**
 * @param {string} name
 * @param {string | null} text null removes it
 */
function save(name, text) {
  try {
    if (text === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, text);
  } catch {
    // storage switched off: a reload will begin anew
  }
}

/** @param {object} body */
function postJson(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}
