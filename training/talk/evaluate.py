"""Judges an avatar: whether its lips say what is heard, how sharp its mouth is, and whether it stays who it is.

What a mouth shows is read from the generated frames by a judge that was trained on real ones; what the judge itself
reaches on real frames stands beside every figure. PSNRs are pooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines.generate import speak
from engines.protocol import Engine
from engines.reference import PictureError, References
from engines.select import load_engine
from streamgen.audio import SAMPLE_RATE, SoundError, log_mel, read_sound
from streamgen.face import CURVES, FACE, MOUTH, SPEECH
from streamgen.models.autoencoder import to_float
from streamgen.models.loading import load_autoencoder, load_transformer
from streamgen.student import Student
from training.clips import encode
from training.data import held_out
from training.evaluate import side_by_side
from training.footage import VideoDataError, pictures
from training.metrics import decode, detail, frames_psnr, inside, other_actions, ssim, teacher_forced
from training.recipe import RecipeError
from training.sheets import contact_sheet, line_sheet
from training.talk.dataset import TalkDataset, sound_of
from training.talk.judge import SAID, FaceJudge, opening

HELD_OUT = Path(__file__).with_name("held_out")
"""Rendered heads that no shipped student was trained on."""
STRANGERS = Path(__file__).with_name("strangers")
"""Two short ones each of heads that none of its training had."""
_CONTEXT, _JUDGED, _CLIPS = 10, 20, 10
_VIDEOS = 8
_MOST_LAG = 8
_SPEECH_FILES, _LEAST_SPEECH_S = 40, 2.0
_MARKS_S = (10, 60, 600)
_WINDOW_S = 2.0
_SQUARE = 4
"""Pixels a side, of whose means two faces are compared."""
_SHEET_STRANGERS, _SHEET_ROWS = 6, 24
_STILL = 0.06
"""A mouth that opens and shuts by less than this while nobody speaks is still."""

Curve = NDArray[np.float32]


def evaluate(
    student: Student,
    data: TalkDataset,
    judge: FaceJudge,
    folder: Path,
    engine_name: str = "auto",
    seconds: float = 600.0,
    talks: int = 1,
    speech: Path | None = None,
    strangers: Path | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """All figures of an avatar on held-out videos; `folder` gets contact sheets and plots.

    seconds, talks: of how long rollouts, and how many; processes: that play them side by side. speech: folder of
    recorded human speech, for what can be said without ground truth. strangers: folder of videos, two or more each, of
    people that the student has never seen, for what it makes of pictures where it takes any; None: STRANGERS.
    Raises RecipeError, VideoDataError.
    """
    if student.config.speech is None:
        raise RecipeError(f"student {student.config.name} is driven by keys: judge it with `--data` of play")
    if student.config.likeness is None and strangers is not None:
        raise RecipeError(f"student {student.config.name} cannot be whoever a picture shows: leave out the strangers")
    folder.mkdir(parents=True, exist_ok=True)
    engine = load_engine(student.path, engine_name)
    figures: dict[str, Any] = {"student": student.config.name, "student_hash": student.hash}
    figures["teacher_forced"] = _teacher_forced(student, data, folder)
    figures["lips"] = _lips(student, engine, data, judge, folder)
    figures["drift"] = _drift(student, engine_name, data, seconds, talks, folder, processes)
    if speech is not None:
        figures["real_speech"] = _real_speech(student, engine, judge, speech)
    if student.config.likeness is not None:
        people = TalkDataset(strangers or STRANGERS, student.config.width, student.config.height)
        figures["strangers"] = _strangers(student, engine, people, judge, folder)
    return figures


def _teacher_forced(student: Student, data: TalkDataset, folder: Path) -> dict[str, Any]:
    """The next frame from the true past, under the true curves."""
    model, autoencoder = load_transformer(student.path), load_autoencoder(student.path)
    real = held_out(data, _CLIPS, _CONTEXT + _JUDGED)
    clips = encode(autoencoder, real, model.config)
    truth = np.stack([clip.frames for clip in real])
    judged = truth[:, _CONTEXT:].reshape(-1, *truth.shape[2:])

    def judge(made: NDArray[np.uint8]) -> dict[str, float]:
        mouths = inside(made, MOUTH), inside(judged, MOUTH)
        return {
            "psnr": frames_psnr(made, judged),
            "psnr_face": frames_psnr(inside(made, FACE), inside(judged, FACE)),
            "psnr_mouth": frames_psnr(*mouths),
            "ssim_mouth": ssim(*mouths),
            "detail_mouth": detail(mouths[0]) / detail(mouths[1]),
        }

    # For a decoder that looks at it: as a stream has it, the picture of the clip's first frame.
    reference = clips.latents[:, 0], to_float(torch.from_numpy(truth[:, 0]))

    def decoded(latents: Tensor) -> NDArray[np.uint8]:
        return decode(autoencoder, latents[:, _CONTEXT:], reference).reshape(judged.shape)

    plans = sorted(student.config.step_plans.items())
    made = {"copy_last": truth[:, _CONTEXT - 1 : -1].reshape(judged.shape), "autoencoder": decoded(clips.latents)}
    made |= {f"steps_{count}": decoded(teacher_forced(model, clips, sigmas)) for count, sigmas in plans}
    wrong = teacher_forced(model, clips, plans[0][1], other_actions(clips.actions))
    made["steps_1_other_curves"] = decoded(wrong)
    contact_sheet(
        [judged[:: 2 * _JUDGED + 3][:6], *(each[:: 2 * _JUDGED + 3][:6] for each in made.values())], folder / "next.png"
    )
    return {"frames": len(judged)} | {name: judge(each) for name, each in made.items()}


def _lips(student: Student, engine: Engine, data: TalkDataset, judge: FaceJudge, folder: Path) -> dict[str, Any]:
    """Held-out sound, spoken by the student's own people."""
    held = [video for video in data.videos if video.split == 0 and video.curves is not None][:_VIDEOS]
    if not held:
        raise VideoDataError(f"{data.folder}: no video is held out and says what moved it")
    identities: list[str | None] = list(student.config.identities) or [None]
    shown, seen, truth, apart = [], [], [], 0
    for number, video in enumerate(held):
        assert video.curves is not None
        sound = sound_of(video.path)
        frames = np.stack(list(speak(engine, student, sound, number, identities[number % len(identities)])))
        real = np.stack(list(pictures(video.path, 0, data.width, data.height)))
        count = min(len(frames), len(real), len(video.curves))
        shown.append(judge.curves_of(frames[:count]))
        seen.append(judge.curves_of(real[:count]))
        truth.append(video.curves[:count, [CURVES.index(name) for name in SAID]])
        if number < 4:
            apart = apart or max(1, count // 12)
            contact_sheet([real[::apart][:12], frames[::apart][:12]], folder / f"talk_{number}.png")
    openings = [[opening(curves) for curves in each] for each in (shown, seen, truth)]
    line_sheet(
        {f"talk {n}": (openings[2][n][:250], openings[0][n][:250]) for n in range(min(4, len(held)))},
        folder / "lips.png",
    )
    return {
        "videos": len(held),
        "frames": sum(map(len, truth)),
        "student": _agreement(shown, truth, data.fps),
        "ceiling": _agreement(seen, truth, data.fps),
        "shuffled": _correlation(openings[0], _shuffled(openings[2])),
        "blinks_a_minute": _blinks(shown, student.config.fps),
        "blinks_a_minute_real": _blinks(seen, data.fps),
    }


def _agreement(judged: list[Curve], truth: list[Curve], fps: float) -> dict[str, float]:
    """Of curves [F, len(SAID)] that a judge read from frames with those that are true."""
    said, real = ([opening(curves) for curves in each] for each in (judged, truth))
    press = list(SPEECH).index("mouthPress")
    shut = np.concatenate([curves[:, press] > 0.6 * SPEECH["mouthPress"] * 0.3 for curves in truth])
    every, true = np.concatenate(said), np.concatenate(real)
    # Where a closed mouth ends and an open one begins, for this judge: half way between the two.
    border = float((np.median(true[shut]) + np.median(true[true > np.quantile(true, 0.8)])) / 2) if shut.any() else 0.15
    wide = true > np.quantile(true, 0.9)
    nearest = np.concatenate([_least_around(each, 1) for each in said])
    silent = np.concatenate([_quiet(curves) for curves in truth])
    moves = np.concatenate([_swing(each) for each in said])
    return {
        "correlation": _correlation(said, real),
        "lag_ms": lag_ms(said, real, fps),
        "closures": float((nearest[shut] < border).mean()) if shut.any() else float("nan"),
        "open_vowels": float((every[wide] > border).mean()),
        "still_in_silence": float((moves[silent] < _STILL).mean()) if silent.any() else float("nan"),
    }


def _correlation(a: list[Curve], b: list[Curve]) -> float:
    return float(np.corrcoef(np.concatenate(a), np.concatenate(b))[0, 1])


def _shuffled(curves: list[Curve]) -> list[Curve]:
    """To each clip another clip's curve, as long as its own."""
    return [np.resize(curves[(n + 1) % len(curves)], len(own)) for n, own in enumerate(curves)]


def lag_ms(said: list[Curve], real: list[Curve], fps: float) -> float:
    """By how much the picture is late, from the best of the shifts up to _MOST_LAG frames and a parabola through it."""
    shifts = range(-_MOST_LAG, _MOST_LAG + 1)
    scores = []
    for shift in shifts:
        pairs = [
            (a[max(0, shift) : len(a) + min(0, shift)], b[max(0, -shift) : len(b) + min(0, -shift)])
            for a, b in zip(said, real, strict=True)
        ]
        scores.append(_correlation([a for a, _ in pairs], [b for _, b in pairs]))
    best = int(np.argmax(scores))
    offset = 0.0
    if 0 < best < len(scores) - 1:
        before, at, after = scores[best - 1 : best + 2]
        offset = 0.5 * (before - after) / (before - 2 * at + after)
    return (shifts[best] + offset) * 1000 / fps


def _around(chosen: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Frames that are chosen, or within `reach` of one that is."""
    return np.convolve(chosen, np.ones(2 * reach + 1), "same") > 0


def _least_around(curve: Curve, reach: int) -> Curve:
    padded = np.pad(curve, reach, mode="edge")
    return np.min([padded[k : k + len(curve)] for k in range(2 * reach + 1)], 0)


def _quiet(curves: Curve) -> NDArray[np.bool_]:
    """Frames at least a quarter of a second from any that speaks."""
    return ~_around(np.abs(curves[:, : len(SPEECH)]).max(1) > 0.6, 6)


def _swing(curve: Curve) -> Curve:
    """How far a mouth opens and shuts within a fifth of a second."""
    padded = np.pad(curve, 2, mode="edge")
    windows = np.stack([padded[k : k + len(curve)] for k in range(5)])
    out: Curve = windows.max(0) - windows.min(0)
    return out


def _blinks(curves: list[Curve], fps: float) -> float:
    """Closings of the eyes a minute."""
    shut = [each[:, SAID.index("blink")] > 0.5 * 4.0 for each in curves]
    count = sum(int((each[1:] & ~each[:-1]).sum()) for each in shut)
    return count / (sum(map(len, shut)) / fps / 60)


def _drift(
    student: Student, engine_name: str, data: TalkDataset, seconds: float, talks: int, folder: Path, processes: int
) -> dict[str, Any]:
    """Long talks, by the student's own people in turns: colour and detail of the face against its own first seconds,
    the worst of all talks, and in how many most frames are nearest to one of the first seconds of the same person;
    beside them, what differs so in the real videos.
    """
    identities: tuple[str | None, ...] = student.config.identities or (None,)
    marks = [mark for mark in (_WINDOW_S, *_MARKS_S) if mark <= seconds]
    sounds = [video.path for video in data.videos if video.split == 0]
    talk = partial(_long_talk, student.path, engine_name, sounds, seconds, marks)
    parts = side_by_side(talk, talks, processes)
    rows = [part[:: len(part) // 10][:10] for kept in parts for part in kept.values()]
    faces = [{mark: inside(part, FACE) for mark, part in kept.items()} for kept in parts]
    contact_sheet(rows[:_SHEET_ROWS], folder / "drift.png")
    people = [number % len(identities) for number in range(talks)]
    small = {mark: [_small(each[mark]) for each in faces] for mark in marks}
    figures: dict[str, Any] = {"talks": talks}
    for mark in marks[1:]:
        figures[f"{mark:g} s"] = _apart([(each[mark], each[marks[0]]) for each in faces]) | {
            "themselves": sum(
                _like(now, small[marks[0]], people) == who for now, who in zip(small[mark], people, strict=True)
            ),
        }
    real = []
    for video in data.videos:
        if video.split == 0:
            whole = pictures(video.path, 0, data.width, data.height)
            windows = [inside(part, FACE) for part in _windows(whole, round(_WINDOW_S * data.fps))]
            real += [(now, windows[0]) for now in windows[1:]]
    return figures | ({"real": {"pairs": len(real)} | _apart(real)} if real else {})


def _apart(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> dict[str, float]:
    """By how much faces [F, h, w, 3] differ from others in colour and in detail, the worst of some pairs."""
    details = [detail(now) / detail(first) for now, first in pairs]
    return {
        "colour": max(float(np.abs(now.mean((0, 1, 2)) - first.mean((0, 1, 2))).max()) for now, first in pairs),
        "detail": max(details, key=lambda ratio: abs(np.log(ratio))),
    }


@cache
def _loaded(path: Path, engine_name: str) -> tuple[Student, Engine]:
    return Student.from_pretrained(path), load_engine(path, engine_name)


def _long_talk(
    path: Path, engine_name: str, videos: Sequence[Path], seconds: float, marks: Sequence[float], number: int
) -> dict[float, NDArray[np.uint8]]:
    """Of a talk with the sound of videos, the frames of the last _WINDOW_S before each mark."""
    student, engine = _loaded(path, engine_name)
    first, identities = number % len(videos), student.config.identities or (None,)
    said = _long_sound([sound_of(video) for video in (*videos[first:], *videos[:first])], seconds)
    frames = speak(engine, student, said, number + 1, identities[number % len(identities)])
    kept: dict[float, NDArray[np.uint8]] = {}
    for index, part in enumerate(_windows(frames, round(_WINDOW_S * student.config.fps))):
        end_s = (index + 1) * _WINDOW_S
        kept |= {mark: part for mark in marks if end_s <= mark or (mark not in kept and end_s - _WINDOW_S < mark)}
    return kept


def _long_sound(sounds: list[NDArray[np.float32]], seconds: float) -> NDArray[np.float32]:
    """One after the other, again and again."""
    pieces: list[NDArray[np.float32]] = []
    for sound in cycle(sounds):
        pieces.append(sound)
        if sum(map(len, pieces)) > seconds * SAMPLE_RATE:
            break
    return np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)]


def _small(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Faces [F, h, w, 3] as means of squares, [F, numbers]: what is finer moves with every word."""
    height, width = (side // _SQUARE * _SQUARE for side in faces.shape[1:3])
    squares = faces[:, :height, :width].reshape(len(faces), height // _SQUARE, _SQUARE, width // _SQUARE, _SQUARE, 3)
    return squares.mean((2, 4), dtype=np.float32).reshape(len(faces), -1)


def _like(faces: NDArray[np.float32], known: list[NDArray[np.float32]], people: list[int]) -> int:
    """Whose of the known faces, each talk's own, are nearest to most of some faces [F, numbers]: a head that is turned
    is like itself turned, where the mean of a talk is not.
    """
    whose = np.repeat(people, [len(each) for each in known])
    every = np.concatenate(known)
    nearest = [int(np.square(every - face).mean(1).argmin()) for face in faces]
    return int(np.bincount(whose[nearest]).argmax())


def _nearest(made: list[NDArray[np.floating]], real: list[NDArray[np.floating]]) -> list[int]:
    """Of each mean face the number of that to which it is nearest."""
    return [int(np.argmin([np.square(own - other).mean() for other in real])) for own in made]


def _windows(frames: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    while len(part := list(islice(frames, size))) == size:
        yield np.stack(part)


def _real_speech(student: Student, engine: Engine, judge: FaceJudge, folder: Path) -> dict[str, Any]:
    """Recorded people: the mouth's opening against the sound's own envelope, all that is known without ground truth."""
    fps = student.config.fps
    said: list[Curve] = []
    loud: list[Curve] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if len(said) == _SPEECH_FILES:
            break
        try:
            sound = read_sound(path)
        except (SoundError, av.error.FFmpegError):
            continue
        if len(sound) < _LEAST_SPEECH_S * SAMPLE_RATE:
            continue
        frames = np.stack(list(speak(engine, student, sound, len(said))))
        said.append(opening(judge.curves_of(frames)))
        loud.append(envelope_at(sound, len(frames), fps))
    if not said:
        raise RecipeError(f"{folder}: no recording of {_LEAST_SPEECH_S:g} s or more in it")
    return {
        "recordings": len(said),
        "seconds": sum(map(len, said)) / fps,
        "envelope": _correlation(said, loud),
        "lag_ms": lag_ms(said, loud, fps),
        "shuffled": _correlation(said, _shuffled(loud)),
    }


def _strangers(student: Student, engine: Engine, data: TalkDataset, judge: FaceJudge, folder: Path) -> dict[str, Any]:
    """People from one picture each, who say what is heard in another video of theirs.

    recognised: share whose mean face is nearer to their own in that video than to anybody else's; of N people,
    chance is 1 / N.
    """
    references, refused = References(student), 0
    made: list[NDArray[np.floating]] = []
    real: list[NDArray[np.floating]] = []
    said: list[Curve] = []
    seen: list[Curve] = []
    truth: list[Curve] = []
    rows: list[NDArray[np.uint8]] = []
    for number, who in enumerate(data.people):
        first, *others = data.only(who).videos
        if not others or others[0].curves is None:
            continue
        at = 0 if first.curves is None else int(np.abs(first.curves).sum(1).argmin())
        picture = next(pictures(first.path, at, data.width, data.height))
        file = BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        try:
            whom = references.read(file.getvalue())
        except PictureError:
            refused += 1
            continue
        sound = sound_of(others[0].path)
        frames = np.stack(list(speak(engine, student, sound, number, reference=whom)))
        shown = np.stack(list(pictures(others[0].path, 0, data.width, data.height)))
        count = min(len(frames), len(shown))
        made.append(inside(frames, FACE).mean(0))
        real.append(inside(shown, FACE).mean(0))
        said.append(judge.curves_of(frames[:count]))
        seen.append(judge.curves_of(shown[:count]))
        truth.append(others[0].curves[:count, [CURVES.index(name) for name in SAID]])
        if len(rows) < 2 * _SHEET_STRANGERS:
            apart = max(1, count // 11)
            rows += [np.concatenate([picture[None], each[::apart][:11]]) for each in (shown, frames)]
    if not made:
        raise VideoDataError(f"{data.folder}: nobody has two videos that say what moved them, and a picture that fits")
    contact_sheet(rows, folder / "strangers.png")
    return {
        "people": len(made),
        "refused": refused,
        "recognised": float((np.array(_nearest(made, real)) == np.arange(len(made))).mean()),
        "student": _agreement(said, truth, data.fps),
        "ceiling": _agreement(seen, truth, data.fps),
    }


def envelope_at(sound: NDArray[np.float32], frames: int, fps: float) -> Curve:
    """How loud a sound is at the middle of every frame, smoothed over 70 ms, as fast as mouths move."""
    loud = np.convolve(log_mel(sound).mean(1), np.ones(7) / 7, "same")
    # Mel frame k looks at the 25 ms before (k + 1) 10 ms.
    middles_s = (np.arange(len(loud)) + 1) * 0.010 - 0.0125
    return np.interp((np.arange(frames) + 0.5) / fps, middles_s, loud).astype(np.float32)
