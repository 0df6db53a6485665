/** The link over WebRTC: video one way, an avatar's sound both ways, control messages on an ordered data channel. */

/** @import { Link, LinkEvents, Sample, Session, Voice } from "./types.d.ts" */

import { deletePeer, postOffer } from "./session.js";

const GATHERING_TIMEOUT_MS = 2_000;
const OPEN_TIMEOUT_MS = 8_000;
/** ICE says `disconnected` at a short loss of packets too; only a longer one ends the link. */
const DISCONNECTED_GRACE_MS = 2_500;

/**
 * @param {Session} session
 * @param {HTMLVideoElement} video shows the picture
 * @param {LinkEvents} events
 * @returns {Promise<Link>} once the data channel is open
 */
export async function openWebRTC(session, video, events) {
  if (!("RTCPeerConnection" in window && "requestVideoFrameCallback" in video)) {
    throw new Error("this browser lacks WebRTC or requestVideoFrameCallback");
  }
  const peer = new RTCPeerConnection({ iceServers: session.ice_servers });
  const channel = peer.createDataChannel("control", { ordered: true });
  const transceiver = peer.addTransceiver("video", { direction: "recvonly" });
  const { receiver } = transceiver;
  // The microphone comes later, if it does: its place is there from the beginning.
  const sound = session.student.speech ? peer.addTransceiver("audio", { direction: "sendrecv" }) : null;
  preferH264(transceiver);
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;

  /** @type {string | null} */
  let location = null;
  let closed = false;
  let callback = 0;

  const close = () => {
    if (closed) return;
    closed = true;
    video.cancelVideoFrameCallback(callback);
    channel.close();
    peer.close();
    if (location) deletePeer(session, location);
  };

  const lost = watch(peer, channel, () => closed);
  channel.onmessage = ({ data }) => events.message(JSON.parse(data));

  /** @type {VideoFrameRequestCallback} */
  const presented = (_now, frame) => {
    // expectedDisplayTime is the photon; presentationTime, when the compositor got the frame, is the fallback.
    const at = frame.expectedDisplayTime || frame.presentationTime;
    if (frame.rtpTimestamp !== undefined) events.shown({ mark: frame.rtpTimestamp, at, ptsMs: null });
    callback = video.requestVideoFrameCallback(presented);
  };
  peer.ontrack = ({ track }) => {
    if (track !== receiver.track) return;
    // In one element, the browser keeps lips and sound together.
    video.srcObject = new MediaStream(sound ? [track, sound.receiver.track] : [track]);
    callback = video.requestVideoFrameCallback(presented);
    video.play().catch(() => {
      // A new track interrupts the play() before it; autoplay starts the element either way.
    });
  };

  try {
    await peer.setLocalDescription();
    await gathered(peer);
    const { answer, peer: address } = await postOffer(session, peer.localDescription?.sdp ?? "");
    location = address;
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
    await opened(channel, lost);
  } catch (error) {
    close();
    throw error;
  }

  return {
    transport: "webrtc",
    lost,
    send: (text) => {
      if (channel.readyState === "open") channel.send(text);
    },
    sample: () => sample(receiver),
    close,
    voice: sound && voiceOf(sound, video),
  };
}

/**
 * @param {RTCRtpTransceiver} sound
 * @param {HTMLVideoElement} video
 * @returns {Voice}
 */
function voiceOf({ sender, receiver }, video) {
  return {
    get level() {
      return receiver.getSynchronizationSources()[0]?.audioLevel ?? 0;
    },
    speak: (track) => sender.replaceTrack(track),
    hear: async (heard) => {
      video.muted = !heard;
      await video.play().catch((error) => {
        if (error.name === "NotAllowedError") throw error; // others are of a play() that was interrupted by the next one
      });
    },
    hush: () => {
      // The browser holds a tenth of a second at most; the server sends nothing of before any more.
    },
  };
}

/**
 * H.264 costs the server a fifth less than VP8 and looks better for the same bytes; where the browser has none, the
 * offer's own order stays.
 * @param {RTCRtpTransceiver} transceiver
 */
function preferH264(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs ?? [];
  /** @param {{ mimeType: string }} codec */
  const isH264 = ({ mimeType }) => mimeType === "video/H264";
  if (codecs.some(isH264)) transceiver.setCodecPreferences?.([...codecs.filter(isH264), ...codecs.filter((each) => !isH264(each))]);
}

/** @param {RTCPeerConnection} peer */
function gathered(peer) {
  return new Promise((resolve) => {
    const check = () => peer.iceGatheringState === "complete" && resolve(undefined);
    peer.addEventListener("icegatheringstatechange", check);
    setTimeout(resolve, GATHERING_TIMEOUT_MS);
    check();
  });
}

/**
 * @param {RTCDataChannel} channel
 * @param {Promise<Error>} lost
 */
function opened(channel, lost) {
  return new Promise((resolve, reject) => {
    channel.onopen = resolve;
    lost.then(reject);
    setTimeout(() => reject(new Error("WebRTC did not connect in time")), OPEN_TIMEOUT_MS);
  });
}

/**
 * @param {RTCPeerConnection} peer
 * @param {RTCDataChannel} channel
 * @param {() => boolean} closed
 * @returns {Promise<Error>}
 */
function watch(peer, channel, closed) {
  return new Promise((resolve) => {
    /** @param {string} why */
    const lose = (why) => !closed() && resolve(new Error(why));
    channel.onclose = () => lose("the server closed the control channel");
    peer.onconnectionstatechange = () => {
      if (peer.connectionState === "failed") lose("the WebRTC connection failed");
      if (peer.connectionState !== "disconnected") return;
      setTimeout(() => peer.connectionState === "disconnected" && lose("the WebRTC connection broke"), DISCONNECTED_GRACE_MS);
    };
  });
}

/**
 * @param {RTCRtpReceiver} receiver
 * @returns {Promise<Sample>}
 */
async function sample(receiver) {
  const report = await receiver.getStats();
  // lib.dom has no type for the entries of a report.
  const inbound = /** @type {any} */ ([...report.values()].find((entry) => entry.type === "inbound-rtp")) ?? {};
  return {
    framesDecoded: inbound.framesDecoded ?? 0,
    bytes: (inbound.bytesReceived ?? 0) + (inbound.headerBytesReceived ?? 0),
    freezes: inbound.freezeCount ?? 0,
    freezeSeconds: inbound.totalFreezesDuration ?? 0,
  };
}
