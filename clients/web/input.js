/** Keys and pad: which of the student's codes are held, and every edge of them. */

/** Keys of the keyboard that mean another code, beside those that mean themselves. */
const ALIASES = new Map([
  ["ArrowUp", "KeyW"],
  ["ArrowDown", "KeyS"],
  ["KeyA", "ArrowLeft"],
  ["KeyD", "ArrowRight"],
]);

/** @param {string} code KeyboardEvent.code */
export const meaning = (code) => ALIASES.get(code) ?? code;

/** @typedef {{ code: string, down: boolean, held: string[], at: number }} Edge at: the event's own time, performance.now()'s clock */

/**
 * Several sources (two keys, a finger) may hold one code: it is down from the first press to the last lift.
 */
export class Keys {
  #onedge;
  #onrelease;
  /** What holds which code. @type {Map<string, string>} */ #sources = new Map();
  /** @type {readonly string[]} */ #known = [];

  /**
   * @param {(edge: Edge) => void} onedge
   * @param {() => void} onrelease all keys are up, whatever was held
   */
  constructor(onedge, onrelease) {
    this.#onedge = onedge;
    this.#onrelease = onrelease;
  }

  /** Only these codes are told; the student names them. @param {readonly string[]} codes */
  allow(codes) {
    this.#known = codes;
  }

  /** @param {string} code */
  knows(code) {
    return this.#known.includes(code);
  }

  get held() {
    return [...new Set(this.#sources.values())].filter((code) => this.knows(code));
  }

  /**
   * @param {string} source what holds the code, such as a key or a finger
   * @param {string} code
   * @param {number} at
   */
  press(source, code, at) {
    if (this.#sources.has(source)) return; // auto-repeat
    const before = this.held;
    this.#sources.set(source, code);
    if (this.knows(code) && !before.includes(code)) this.#onedge({ code, down: true, held: this.held, at });
  }

  /**
   * @param {string} source
   * @param {number} at
   */
  lift(source, at) {
    const code = this.#sources.get(source);
    if (code === undefined) return;
    this.#sources.delete(source);
    const held = this.held;
    if (this.knows(code) && !held.includes(code)) this.#onedge({ code, down: false, held, at });
  }

  releaseAll() {
    if (!this.#sources.size) return;
    this.#sources.clear();
    this.#onrelease();
  }
}

/**
 * Listens to the keyboard for as long as the page lives.
 * @param {Keys} keys
 * @param {(event: KeyboardEvent) => boolean} taken says that the page itself used this key press
 */
export function listenToKeyboard(keys, taken) {
  addEventListener("keydown", (event) => {
    // A key-up is never told while the system's own modifier is down.
    if (event.metaKey) keys.releaseAll();
    if (event.ctrlKey || event.altKey || event.metaKey || wantsItself(event)) return;
    if (!event.repeat && taken(event)) return event.preventDefault();
    const code = meaning(event.code);
    keys.press(`key ${event.code}`, code, event.timeStamp);
    if (keys.knows(code)) event.preventDefault();
  });
  addEventListener("keyup", (event) => keys.lift(`key ${event.code}`, event.timeStamp));
  addEventListener("blur", () => keys.releaseAll());
  addEventListener("visibilitychange", () => document.hidden && keys.releaseAll());
}

/** A field or a choice keeps what is typed, a button reached with the keyboard the keys that press it. @param {KeyboardEvent} event */
function wantsItself(event) {
  if (event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement) return true;
  const presses = event.code === "Space" || event.code === "Enter";
  return presses && event.target instanceof HTMLButtonElement && event.target.matches(":focus-visible");
}
