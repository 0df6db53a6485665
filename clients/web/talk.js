/** What a person does with an avatar: talks to it, types, gives it files, interrupts it, and hears it or not. */

/** @import { Link, MicrophoneState, Session } from "./types.d.ts" */

import { Microphone } from "./microphone.js";
import { interrupt, Refused, say, saySound } from "./session.js";

/** Between two readings of the microphone's level. */
const LEVEL_MS = 50;

/** What the server answers, in words for the person; where there are none here, its own. @type {Record<string, string>} */
const REFUSALS = {
  no_speech: "This server has no voice for text: talk to it, or give it a sound file.",
  voice_full: "It has enough to say already. Let it finish, or interrupt it.",
  body_too_large: "That file is too large for this server.",
};

/**
 * @typedef {object} Listener
 * @property {(text: string) => void} notice
 * @property {() => void} changed
 * @property {(level: number) => void} level of the microphone, 0 to 1, while it is on
 */

export class Talk {
  #listener;
  /** @type {Link | null} */ #link = null;
  /** @type {Microphone | null} */ #microphone = null;
  /** @type {MicrophoneState} */ #state = "off";
  #asking = false;
  #wanted = true;
  /** Browsers let a page be heard only after a click on it. */ #blocked = false;
  #timer = 0;

  /** @param {Listener} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  get microphone() {
    return this.#state;
  }

  /** Whether what it says comes out of the loudspeaker. */
  get heard() {
    return this.#wanted && !this.#blocked;
  }

  /** How loud it is now, heard or not: 0 to 1. */
  get level() {
    return this.#link?.voice?.level ?? 0;
  }

  /** How loud the person is now: 0 to 1. */
  get microphoneLevel() {
    return this.#microphone?.level ?? 0;
  }

  /** @param {Link | null} link */
  linked(link) {
    this.#link = link;
    this.#blocked = !navigator.userActivation.hasBeenActive;
    this.#tell();
    if (this.#microphone) this.#speak(this.#microphone.track);
  }

  /** While it is on, the avatar is not heard unless that is asked for: it says what the person says, a moment later. */
  async toggleMicrophone() {
    if (this.#asking) return;
    if (this.#microphone) return this.#switchOff();
    this.#asking = true;
    try {
      this.#microphone = await Microphone.open();
      this.#microphone.track.onended = () => this.#switchOff(); // unplugged, or taken back
      this.#speak(this.#microphone.track);
      this.#state = "on";
      this.#wanted = false;
      this.#timer = setInterval(() => this.#listener.level(this.microphoneLevel), LEVEL_MS);
    } catch (error) {
      this.#microphone?.close();
      this.#microphone = null;
      this.#state = "refused";
      this.#listener.notice(withoutMicrophone(/** @type {Error} */ (error).name));
    }
    this.#asking = false;
    this.#tell();
  }

  #switchOff() {
    this.#microphone?.close();
    this.#microphone = null;
    this.#speak(null);
    clearInterval(this.#timer);
    this.#state = "off";
    this.#wanted = true;
    this.#tell();
  }

  /** @param {MediaStreamTrack | null} track */
  #speak(track) {
    this.#link?.voice?.speak(track).catch(() => {
      // The link is being lost: the next one is given the microphone anew.
    });
  }

  toggleHeard() {
    this.#wanted = !this.heard;
    this.#blocked = false;
    this.#tell();
  }

  /**
   * @param {Session} session
   * @param {string} text
   */
  say(session, text) {
    return this.#give(say(session, text), "The text did not get through.");
  }

  /**
   * @param {Session} session
   * @param {Blob} file
   */
  play(session, file) {
    return this.#give(saySound(session, file), "The file did not get through. Is it very large?");
  }

  /** @param {Session} session */
  interrupt(session) {
    const after = interrupt(session);
    this.#link?.voice?.hush(after);
    after.catch(() => this.#listener.notice("The interruption did not get through."));
  }

  /**
   * @param {Promise<void>} given
   * @param {string} lost what to say where the server did not answer
   * @returns {Promise<boolean>} whether it will be said
   */
  async #give(given, lost) {
    this.#blocked = false;
    this.#tell();
    if (this.#state === "on" && !this.heard) this.#listener.notice("Its voice is off while your microphone is on.");
    try {
      await given;
      return true;
    } catch (error) {
      this.#listener.notice(error instanceof Refused ? (REFUSALS[error.code] ?? error.message) : lost);
      return false;
    }
  }

  #tell() {
    const { heard } = this;
    this.#link?.voice?.hear(heard).catch(() => {
      this.#blocked = true;
      if (heard) this.#tell();
    });
    this.#listener.changed();
  }
}

/** @param {string} name of a DOMException of getUserMedia */
function withoutMicrophone(name) {
  if (name === "NotAllowedError") return "The browser does not give the microphone: allow it for this page, or type.";
  if (name === "NotFoundError") return "There is no microphone here. You can type, or give it a sound file.";
  if (name === "SecurityError") return "Browsers give a microphone only to pages that came over HTTPS. You can type.";
  return "The microphone does not work here. You can type, or give it a sound file.";
}
