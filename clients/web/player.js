/** Keeps a picture on the screen: opens the session, connects, and comes back by itself when something breaks. */

/** @import { ClientMessage, Link, LinkEvents, PlayerState, ServerMessage, Session, Snapshot, TransportName, Trouble, Wish } from "./types.d.ts" */
/** @import { Edge } from "./input.js" */
/** @import { Meter } from "./stats.js" */

import { checkSession, createSession, endSession, forget, Refused, resetSession, Unreachable } from "./session.js";
import { openWebRTC } from "./webrtc.js";
import { openWebSocket } from "./websocket.js";

/** The server takes a viewer that is silent for 3 s for gone. */
const HEARTBEAT_MS = 1_000;
const SILENCE_MS = 4_000;
const READY_TIMEOUT_MS = 6_000;
const FIRST_FRAME_TIMEOUT_MS = 6_000;
const BACKOFF_S = [0.3, 1, 2, 4, 8];
const FULL_RETRY_S = 5;
const RESTART_RETRY_S = 2;
const RESTART_PATIENCE_MS = 120_000;
const REMEMBERED = 16;

/**
 * @typedef {object} Stage what the player needs of the page
 * @property {HTMLVideoElement} video
 * @property {HTMLCanvasElement} canvas
 * @property {(transport: TransportName) => void} arrived the first frame of a new link is on the screen; a paused one may have none
 * @property {() => void} hold the link is gone: keep its last frame
 * @property {(link: Link | null) => void} linked there is a new link, or none any more
 * @property {(snapshot: Snapshot) => void} changed
 * @property {(text: string) => void} notice something that the person may want to know, and need not act on
 * @property {() => readonly string[]} held codes
 */

/** The person wants another session. */
class Another extends Error {}

export class Player {
  #stage;
  #meter;
  /** @type {PlayerState} */ #state = "idle";
  /** @type {Trouble | null} */ #trouble = null;
  /** @type {Session | null} */ #session = null;
  /** @type {Link | null} */ #link = null;
  /** @type {TransportName} */ #transport;
  #encoding;
  /** @type {Wish} */ #wish = {};
  #seq = 0;
  #running = false;
  #stopped = false;
  #webrtcWorked = false;
  #paused = false;
  /** When the server said that it restarts; null once it is back. @type {number | null} */ #restartsSince = null;
  /** The page, not the person, asked for the pause. */ #pausedUnseen = false;
  /** @type {() => void} */ #wake = () => {};
  /** @type {(error: Error) => void} */ #die = () => {};
  /** The session that was left for another one has given its place back. */ #given = Promise.resolve();
  /** Why the last connections ended or none was had, oldest first. @type {string[]} */ broke = [];
  /** When the oldest ping went out after which nothing was heard. @type {number | null} */ #unheardSince = null;

  /**
   * @param {Stage} stage
   * @param {Meter} meter
   * @param {TransportName} transport tried first
   * @param {string | null} encoding of the picture over a WebSocket, where the person has a wish
   */
  constructor(stage, meter, transport, encoding) {
    this.#stage = stage;
    this.#meter = meter;
    this.#transport = transport;
    this.#encoding = encoding;
  }

  /** @returns {Snapshot} */
  get snapshot() {
    return { state: this.#state, trouble: this.#trouble, session: this.#session, transport: this.#link?.transport ?? null };
  }

  /**
   * @param {Wish} wish for a new session
   * @param {Session | null} session to return to
   * @param {number} at when it was asked for
   */
  async start(wish, session, at) {
    if (this.#running) return;
    this.#running = true;
    this.#stopped = false;
    this.#wish = wish;
    this.#session ??= session;
    this.#meter.clicked(at);
    this.#set("connecting");
    for (let failures = 0; !this.#stopped; ) {
      try {
        await this.#walk(() => (failures = 0));
      } catch (error) {
        if (this.#stopped || !(await this.#recover(/** @type {Error} */ (error), failures))) break;
        // To become somebody else is no failure, or the first one after it would cost WebRTC.
        failures = error instanceof Another ? 0 : failures + 1;
      }
    }
    this.#running = false;
  }

  /** Leaves the session for another one. @param {Wish} wish */
  another(wish) {
    this.#wish = wish;
    if (!this.#session) return;
    this.#unlink();
    this.#given = endSession(this.#session);
    this.#session = null;
    this.#set("connecting");
    this.#meter.clicked(performance.now());
    this.#die(new Another());
  }

  /** Do not wait any longer for the next try. */
  tryNow() {
    this.#wake();
  }

  /** @param {Edge} edge */
  steer({ code, down, held, at }) {
    if (this.#state === "paused" && down) this.resume();
    if (this.#state !== "playing") return;
    this.#seq += 1;
    this.#meter.sent(this.#seq, at, true);
    this.#send({ type: "input", seq: this.#seq, code, down, held, t: at });
  }

  release() {
    const now = performance.now();
    this.#seq += 1;
    this.#meter.sent(this.#seq, now, false);
    this.#send({ type: "release", seq: this.#seq, t: now });
  }

  pause() {
    this.#send({ type: "pause" });
  }

  resume() {
    this.#send({ type: "resume" });
  }

  /** Nobody looks: the world waits. @param {boolean} hidden */
  unseen(hidden) {
    if (hidden && this.#state === "playing") {
      this.#pausedUnseen = true;
      this.pause();
    } else if (!hidden && this.#pausedUnseen && this.#link) {
      this.#pausedUnseen = false;
      this.resume();
    }
  }

  /** @param {number} seed */
  async newWorld(seed) {
    if (!this.#session || !this.#link) return;
    try {
      this.#session = await resetSession(this.#session, seed);
      this.#meter.restarted();
      if (this.#paused) this.resume();
      this.#changed();
    } catch (error) {
      this.#stage.notice(`It did not begin anew: ${/** @type {Error} */ (error).message}.`);
    }
  }

  /** The server began the stream anew, from another seed. */
  #ranAway() {
    this.#meter.restarted();
    this.#reread().then(this.#changed, () => {}); // the link notices by itself that it is gone
  }

  /** Throws where the session does not live any more. */
  async #reread() {
    const session = this.#session;
    if (!session) return;
    const now = await checkSession(session);
    if (this.#session === session) this.#session = now;
  }

  /** The page goes away. The stream waits for a while; `start` with the same session returns to it. */
  leave() {
    this.#stopped = true;
    this.#send({ type: "bye" });
    this.#unlink();
    this.#die(new Error("the page was left"));
    this.#wake();
  }

  /**
   * One link from its opening to its end. Throws when it is lost or none could be had.
   * @param {() => void} arrived
   */
  async #walk(arrived) {
    if (this.#session) await this.#reread();
    else this.#session = await createSession(this.#wish);
    this.#changed();

    const ready = promise();
    const picture = promise();
    const paused = promise();
    const dead = promise();
    const gone = dead.promise.then((error) => Promise.reject(error));
    gone.catch(() => {}); // it is raced below, perhaps never

    /** @type {LinkEvents} */
    const events = {
      message: (message) => {
        this.#unheardSince = null;
        if (message.type === "ready") ready.resolve(message);
        if (message.type === "paused") paused.resolve(message);
        this.#hear(message);
      },
      shown: (shown) => {
        picture.resolve(shown);
        this.#meter.shown(shown);
      },
    };
    const link =
      this.#transport === "webrtc"
        ? await openWebRTC(this.#session, this.#stage.video, events)
        : await openWebSocket(this.#session, this.#stage.canvas, events, this.#encoding);
    if (this.#stopped) return link.close();
    this.#link = link;
    this.#stage.linked(link);
    this.#paused = false;
    this.#unheardSince = null;
    this.#meter.linked();
    picture.promise.then(() => this.#stage.arrived(link.transport));
    this.#die = dead.resolve;
    link.lost.then(dead.resolve);
    const beat = setInterval(() => this.#beat(link), HEARTBEAT_MS);
    try {
      this.#beat(link);
      await Promise.race([ready.promise, gone, late("the server did not say that it is ready", READY_TIMEOUT_MS)]);
      // A server that was started anew has no picture of a paused world.
      await Promise.race([picture.promise, paused.promise, gone, firstFrameLate()]);
      if (link.transport === "webrtc") this.#webrtcWorked = true;
      arrived();
      this.#restartsSince = null;
      this.#set(this.#paused ? "paused" : "playing");
      this.#ping(); // keys that were pressed too early count now
      this.unseen(document.hidden); // it may have changed while there was no link
      await gone;
    } finally {
      clearInterval(beat);
      this.#unlink();
    }
  }

  get #restarting() {
    return this.#restartsSince !== null && performance.now() - this.#restartsSince < RESTART_PATIENCE_MS;
  }

  /** @param {Link} link */
  #beat(link) {
    const now = performance.now();
    if (this.#unheardSince !== null && now - this.#unheardSince > SILENCE_MS) this.#die(new Error("the server fell silent"));
    this.#unheardSince ??= now;
    this.#ping();
    // Their acknowledgements date the frames before anybody presses a key.
    if (this.#state === "playing" && this.#meter.wantsAnchors && !this.#stage.held().length) this.release();
    link.sample().then((sample) => {
      if (link !== this.#link) return; // it was closed meanwhile
      this.#meter.sampled(sample, now);
      this.#changed();
    });
  }

  /** Says that somebody is here, and which keys are down, should a message have been lost. */
  #ping() {
    this.#send({ type: "ping", seq: this.#seq, held: [...this.#stage.held()], t: performance.now() });
  }

  #unlink() {
    if (!this.#link) return;
    this.#stage.hold();
    this.#link.close();
    this.#link = null;
    this.#stage.linked(null);
    this.#meter.restarted();
  }

  /**
   * What to do about an error: wait, change the transport, begin anew, or give up.
   * @param {Error} error
   * @param {number} failures before this one, in a row
   * @returns {Promise<boolean>} whether to try again
   */
  async #recover(error, failures) {
    if (error instanceof Another) {
      await this.#given;
      return true;
    }
    this.broke = [...this.broke, `${this.#transport}: ${error.message}`].slice(-REMEMBERED);
    const backoffS = BACKOFF_S[Math.min(failures, BACKOFF_S.length - 1)] * (0.8 + 0.4 * Math.random());
    // It may be away, so that a proxy answers for it, or back and still loading its network: no reason to change the transport.
    if (this.#restarting && (!(error instanceof Refused) || error.code === "draining" || error.code.startsWith("http_5")))
      return this.#wait("restarting", error.message, Math.min(backoffS, RESTART_RETRY_S));
    // Media ports are for WebRTC alone: without one it goes on below, by the other way.
    if (error instanceof Refused && error.code !== "no_media_port") {
      if (error.gone && this.#session) {
        forget();
        this.#session = null;
        this.#stage.notice("That stream has ended. Here is a new one.");
        return true;
      }
      if (error.locked) return this.#giveUp("locked", error.code === "key_unknown" ? error.message : "");
      if (error.full) {
        const kind = error.code === "starting" || error.code === "draining" ? "starting" : error.status === 429 ? "limited" : "full";
        return this.#wait(kind, error.message, error.retryAfterS ?? FULL_RETRY_S);
      }
      if (error.retryable) return this.#wait("unreachable", error.message, backoffS);
      if (!this.#session) return this.#giveUp("refused", error.message);
    }
    if (error instanceof Unreachable) return this.#wait("unreachable", error.message, backoffS);
    if (this.#transport === "webrtc" && (!this.#webrtcWorked || failures > 0)) {
      this.#transport = "websocket";
      this.#stage.notice("WebRTC did not get through, so the picture comes over a WebSocket.");
      return true;
    }
    // A proxy may let no WebSocket through, and WebRTC only have been slow once.
    if (this.#webrtcWorked && failures > 0) this.#transport = "webrtc";
    return this.#wait("interrupted", error.message, backoffS);
  }

  /**
   * @param {Trouble["kind"]} kind
   * @param {string} detail
   * @param {number} seconds
   */
  async #wait(kind, detail, seconds) {
    const until = performance.now() + seconds * 1000;
    let awake = false;
    for (let left = seconds; left > 0 && !awake; left = (until - performance.now()) / 1000) {
      this.#set(kind === "interrupted" ? "reconnecting" : "waiting", { kind, detail, seconds: Math.ceil(left) });
      await new Promise((resolve) => {
        this.#wake = () => resolve((awake = true));
        setTimeout(resolve, Math.min(left, left % 1 || 1) * 1000);
      });
    }
    this.#wake = () => {};
    // While it tries, the message stays, without a countdown.
    this.#set(this.#state, { kind, detail, seconds: null });
    return !this.#stopped;
  }

  /**
   * @param {Trouble["kind"]} kind
   * @param {string} detail
   */
  #giveUp(kind, detail) {
    this.#set("failed", { kind, detail, seconds: null });
    return false;
  }

  /** @param {ServerMessage} message */
  #hear(message) {
    switch (message.type) {
      case "ack":
        return this.#meter.acked(message);
      case "pong":
        return this.#meter.ponged(message, performance.now());
      case "status":
        this.#meter.status = message;
        return;
      case "paused":
      case "resumed":
        this.#paused = message.type === "paused";
        this.#meter.restarted();
        if (!this.#paused) this.#ping();
        if (this.#state === "playing" || this.#state === "paused") this.#set(this.#paused ? "paused" : "playing");
        return;
      case "error":
        if (message.code === "ran_away") this.#ranAway();
        if (message.code === "server_restarts") this.#restartsSince = performance.now();
        else if (!this.#restarting) this.#stage.notice(message.message);
        return;
    }
  }

  /** @param {ClientMessage} message */
  #send(message) {
    this.#link?.send(JSON.stringify(message));
  }

  /**
   * @param {PlayerState} state
   * @param {Trouble | null} trouble
   */
  #set(state, trouble = null) {
    this.#state = state;
    this.#trouble = trouble;
    this.#changed();
  }

  #changed() {
    this.#stage.changed(this.snapshot);
  }
}

/** @returns {{ promise: Promise<any>, resolve: (value: any) => void }} */
function promise() {
  /** @type {(value: any) => void} */
  let resolve = () => {};
  return { promise: new Promise((settle) => (resolve = settle)), resolve: (value) => resolve(value) };
}

/**
 * @param {string} what
 * @param {number} afterMs
 * @returns {Promise<never>}
 */
function late(what, afterMs) {
  return new Promise((_, reject) => setTimeout(() => reject(new Error(what)), afterMs));
}

/** Ends without an error in a page that nobody sees: there, the browser shows no frames. */
async function firstFrameLate() {
  await late("no picture came", FIRST_FRAME_TIMEOUT_MS).catch((error) => {
    if (!document.hidden) throw error;
  });
}
