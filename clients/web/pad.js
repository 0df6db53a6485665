/** The touch pad: a cross to walk and turn with one thumb, diagonals included, and a button to fire with the other. */

/** @import { Keys } from "./input.js" */

/** Share of the cross's half width around its centre where a thumb rests without steering. */
const REST = 0.22;
/** tan 22.5 degrees: eight equal sectors, so that a diagonal holds two directions. */
const DIAGONAL = Math.SQRT2 - 1;

/**
 * @param {HTMLElement} pad holds buttons with `data-code`; those inside `.cross` are steered by the place of the finger
 * @param {Keys} keys
 */
export function listenToPad(pad, keys) {
  /** What each finger holds. @type {Map<number, Set<string>>} */
  const fingers = new Map();

  /**
   * @param {number} finger
   * @param {Set<string>} codes
   * @param {number} at
   */
  const hold = (finger, codes, at) => {
    for (const code of fingers.get(finger) ?? []) if (!codes.has(code)) keys.lift(`finger ${finger} ${code}`, at);
    for (const code of codes) keys.press(`finger ${finger} ${code}`, code, at);
    if (codes.size) fingers.set(finger, codes);
    else fingers.delete(finger);
  };

  for (const part of /** @type {NodeListOf<HTMLElement>} */ (pad.querySelectorAll(".cross, .alone"))) {
    const codesAt = part.classList.contains("cross") ? crossCodes : buttonCodes;
    /** @param {PointerEvent} event */
    const steer = (event) => {
      event.preventDefault();
      hold(event.pointerId, codesAt(part, event), event.timeStamp);
    };
    /** @param {PointerEvent} event */
    const end = (event) => hold(event.pointerId, new Set(), event.timeStamp);

    part.addEventListener("pointerdown", (event) => {
      part.setPointerCapture(event.pointerId);
      steer(event);
    });
    part.addEventListener("pointermove", (event) => part.hasPointerCapture(event.pointerId) && steer(event));
    part.addEventListener("pointerup", end);
    part.addEventListener("pointercancel", end);
    part.addEventListener("lostpointercapture", end);
  }
  pad.addEventListener("contextmenu", (event) => event.preventDefault());
  // What releases all keys forgets the fingers too: the next move of a finger presses anew.
  addEventListener("blur", () => fingers.clear());
}

/** @param {HTMLElement} part */
function buttonCodes(part) {
  return new Set([part.dataset.code ?? ""]);
}

/**
 * @param {HTMLElement} cross
 * @param {PointerEvent} event
 */
function crossCodes(cross, event) {
  const box = cross.getBoundingClientRect();
  const x = (event.clientX - box.left) / (box.width / 2) - 1;
  const y = (event.clientY - box.top) / (box.height / 2) - 1;
  /** @type {Set<string>} */
  const codes = new Set();
  if (Math.hypot(x, y) < REST) return codes;
  if (Math.abs(y) > Math.abs(x) * DIAGONAL) codes.add(y < 0 ? "KeyW" : "KeyS");
  if (Math.abs(x) > Math.abs(y) * DIAGONAL) codes.add(x < 0 ? "ArrowLeft" : "ArrowRight");
  return codes;
}
