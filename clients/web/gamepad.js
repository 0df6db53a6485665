/** Gamepads: sticks, cross and buttons hold the student's codes, as keys do. */

/** @import { Keys } from "./input.js" */

/** What each button of the standard mapping holds (W3C Gamepad, "Remapping"): A and the right trigger, shoulders, cross. */
const BUTTONS = /** @type {[number, string][]} */ ([
  [0, "Space"],
  [7, "Space"],
  [4, "ArrowLeft"],
  [5, "ArrowRight"],
  [12, "KeyW"],
  [13, "KeyS"],
  [14, "ArrowLeft"],
  [15, "ArrowRight"],
]);
/** What each axis holds at its two ends: the left stick walks and turns, the right one turns. */
const AXES = /** @type {[number, string, string][]} */ ([
  [0, "ArrowLeft", "ArrowRight"],
  [1, "KeyW", "KeyS"],
  [2, "ArrowLeft", "ArrowRight"],
]);
/** A stick holds from the one on, until it is back below the other: at the edge it would tremble. */
const PRESSED_FROM = 0.5;
const HELD_FROM = 0.35;

/**
 * Reads gamepads once a picture for as long as one is connected.
 * @param {Keys} keys
 * @param {(at: number) => void} used something is pressed
 * @param {(connected: boolean) => void} changed
 */
export function listenToGamepads(keys, used, changed) {
  /** What is down: part of a gamepad -> its code. @type {Map<string, string>} */
  let down = new Map();
  let connected = false;

  const read = () => {
    const gamepads = navigator.getGamepads().flatMap((gamepad) => (gamepad?.mapping === "standard" ? [gamepad] : []));
    const at = performance.now();
    /** @type {Map<string, string>} */
    const now = new Map();
    // Leaving the window releases all keys; what is still down on return is pressed anew.
    for (const gamepad of document.hasFocus() ? gamepads : []) {
      for (const [part, code] of parts(gamepad, (part) => down.has(part))) now.set(part, code);
    }
    // Lifts come last: what moves from the stick to the cross stays down.
    for (const [part, code] of now) {
      used(at);
      keys.press(part, code, at);
    }
    for (const part of down.keys()) if (!now.has(part)) keys.lift(part, at);
    down = now;
    if (connected !== gamepads.length > 0) changed((connected = !connected));
    if (connected) requestAnimationFrame(read);
  };
  addEventListener("gamepadconnected", () => connected || read());
}

/**
 * The parts that are pressed, and what they hold.
 * @param {Gamepad} gamepad
 * @param {(part: string) => boolean} held
 * @returns {Generator<[string, string]>}
 */
function* parts({ index, buttons, axes }, held) {
  for (const [button, code] of BUTTONS) if (buttons[button]?.pressed) yield [`gamepad ${index} button ${button}`, code];
  for (const [axis, low, high] of AXES) {
    for (const [code, value] of /** @type {[string, number][]} */ ([[low, -axes[axis]], [high, axes[axis]]])) {
      const part = `gamepad ${index} axis ${axis} ${code}`;
      if (value >= (held(part) ? HELD_FROM : PRESSED_FROM)) yield [part, code];
    }
  }
}
