"""Mailboxes and limits."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from server.limits import TokenBucket
from server.mailbox import Frame, Mailbox, MailboxClosed
from tests.server.synthetic import MADE


def frame(index: int) -> Frame:
    return Frame(0, index, index * 1000, np.full((16, 16, 3), index, np.uint8), MADE)


async def test_the_older_of_three_frames_is_dropped() -> None:
    box = Mailbox()
    assert [box.put(frame(i)) for i in range(5)] == [0, 0, 1, 1, 1]
    assert [(await box.get()).index, (await box.get()).index] == [3, 4]
    assert box.dropped == 3


async def test_a_reader_waits_for_a_frame_and_is_told_of_the_end() -> None:
    box = Mailbox()
    reader = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(frame(1))
    assert (await reader).index == 1
    reader = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.close()
    with pytest.raises(MailboxClosed):
        await reader
    assert box.put(frame(2)) == 0
    with pytest.raises(MailboxClosed):
        await box.get()


async def test_viewers_share_one_encoding_and_one_leaving_does_not_spoil_it() -> None:
    picture = frame(7)
    with ThreadPoolExecutor(1) as pool:
        leaving = asyncio.create_task(picture.jpeg(pool))
        staying = asyncio.create_task(picture.jpeg(pool))
        await asyncio.sleep(0)
        leaving.cancel()
        jpeg = await staying
        assert await picture.jpeg(pool) is jpeg
    image = Image.open(io.BytesIO(jpeg))
    assert image.size == (16, 16)
    # 4:4:4: no component is subsampled.
    assert {(h, v) for _, h, v, _ in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_a_token_bucket_allows_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(10.0, 5.0, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert [bucket.take(0.25) for _ in range(3)] == [True, True, False]
    assert sum(bucket.take(100.0) for _ in range(20)) == 5
