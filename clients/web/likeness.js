/** A picture of whom an avatar is to be. */

/** @import { Student } from "./types.d.ts" */

/**
 * The middle of a picture at the size of the student's frames, which is all that the server looks at.
 * @param {Blob} file
 * @param {Student} student
 * @returns {Promise<string>} PNG in base64; throws where the browser cannot read the file as a picture
 */
export async function likenessOf(file, { width, height }) {
  const picture = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  const scale = Math.max(width / picture.width, height / picture.height);
  const [wide, high] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
  picture.close();
  return canvas.toDataURL("image/png").split(",")[1];
}
