import asyncio
import threading

import pytest

from embedfit.serve.batching import Batcher, Busy, Closed


class Recorder:
    """Doubles numbers, and keeps the batches. A batch with a negative number fails."""

    def __init__(self, gate=None):
        self.batches, self.gate, self.begun = [], gate, threading.Event()

    def __call__(self, items):
        self.begun.set()
        self.batches.append(list(items))
        if self.gate:
            self.gate.wait(10)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


def lengths(items):
    return [10] * len(items)


async def begun(work):
    while not work.begun.is_set():
        await asyncio.sleep(0)


def test_requests_that_arrive_together_are_one_batch_and_each_gets_its_own():
    work = Recorder()

    async def ask():
        batcher = Batcher({"lane": work}, wait=1)
        batcher._requests_before = 3
        answers = await asyncio.gather(*(batcher.submit("lane", items, lengths(items)) for items in ([1, 2], [3], [4, 5])))
        await batcher.close()
        return answers

    assert asyncio.run(ask()) == [[2, 4], [6], [8, 10]]
    assert [sorted(batch) for batch in work.batches] == [[1, 2, 3, 4, 5]]


def test_texts_of_other_lengths_and_lanes_are_other_batches():
    gate = threading.Event()
    short, other = Recorder(gate), Recorder()

    async def ask():
        batcher = Batcher({"a": short, "b": other}, wait=0)
        first = asyncio.create_task(batcher.submit("a", [0], [10]))
        await begun(short)
        rest = [
            asyncio.create_task(batcher.submit(lane, items, sizes))
            for lane, items, sizes in (("a", [1], [5000]), ("a", [2], [12]), ("b", [3], [10]), ("a", [4], [9]))
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
        await batcher.close()

    asyncio.run(ask())
    assert sorted(map(sorted, short.batches)) == [[0], [1], [2, 4]]
    assert other.batches == [[3]]


def test_a_short_request_overtakes_the_rest_of_a_large_one():
    gate = threading.Event()
    work = Recorder(gate)

    async def ask():
        batcher = Batcher({"lane": work}, largest=4, wait=0)
        large = asyncio.create_task(batcher.submit("lane", list(range(40)), lengths(range(40))))
        await begun(work)
        small = asyncio.create_task(batcher.submit("lane", [99], [10]))
        await asyncio.sleep(0)
        gate.set()
        assert await small == [198]
        assert not large.done()
        assert await large == [2 * number for number in range(40)]
        await batcher.close()

    asyncio.run(ask())
    assert max(map(len, work.batches)) == 4


def test_a_request_that_fails_does_not_take_the_others_with_it():
    work = Recorder()

    async def ask():
        batcher = Batcher({"lane": work}, wait=1)
        batcher._requests_before = 3
        answers = await asyncio.gather(
            *(batcher.submit("lane", items, lengths(items)) for items in ([1], [-1, 2], [3])), return_exceptions=True
        )
        await batcher.close()
        return answers

    one, failed, three = asyncio.run(ask())
    assert (one, three) == ([2], [6])
    assert isinstance(failed, ValueError)


def test_a_full_queue_refuses_and_says_when_to_come_back_and_a_closed_one_finishes_what_it_took():
    gate = threading.Event()
    work = Recorder(gate)

    async def ask():
        batcher = Batcher({"lane": work}, queue=5, wait=0)
        taken = [asyncio.create_task(batcher.submit("lane", [1, 2, 3], lengths("abc")))]
        await begun(work)
        taken.append(asyncio.create_task(batcher.submit("lane", [4, 5], lengths("ab"))))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as busy:
            await batcher.submit("lane", [6], [10])
        assert busy.value.seconds >= 1
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await batcher.submit("lane", [7], [10])
        gate.set()
        await closing
        return await asyncio.gather(*taken)

    assert asyncio.run(ask()) == [[2, 4, 6], [8, 10]]


def test_a_request_larger_than_the_queue_is_taken_if_nothing_waits():
    work = Recorder()

    async def ask():
        batcher = Batcher({"lane": work}, queue=2)
        answer = await batcher.submit("lane", [1, 2, 3], lengths("abc"))
        await batcher.close()
        return answer

    assert asyncio.run(ask()) == [2, 4, 6]
