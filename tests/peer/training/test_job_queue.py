from __future__ import annotations

import asyncio
import threading

import pytest

from peer.training.job_queue import JobQueue


def drain(jobs: JobQueue) -> None:
    while (job := jobs.next(wait_s=0.0)) is not None:
        job.run()


def test_jobs_run_in_the_order_in_which_they_were_put_and_only_when_taken() -> None:
    jobs, done = JobQueue(), list[int]()
    futures = [jobs.put(lambda number=number: done.append(number)) for number in range(5)]
    assert done == []
    assert not any(future.done() for future in futures)
    drain(jobs)
    assert done == [0, 1, 2, 3, 4]
    assert all(future.done() for future in futures)


def test_there_is_no_job_until_one_is_put() -> None:
    jobs = JobQueue()
    assert jobs.next(wait_s=0.0) is None
    assert jobs.next(wait_s=0.001) is None
    jobs.put(lambda: 1)
    assert jobs.next(wait_s=60.0) is not None


def test_the_result_comes_back_to_the_network_while_the_work_is_done_on_the_training_thread() -> None:
    jobs, threads = JobQueue(), list[threading.Thread]()

    def work() -> str:
        threads.append(threading.current_thread())
        return "done"

    def train() -> None:
        job = jobs.next(wait_s=10.0)
        assert job is not None
        job.run()

    trainer = threading.Thread(target=train)
    trainer.start()
    assert asyncio.run(jobs.run(work)) == "done"
    trainer.join()
    assert threads == [trainer]


def test_a_job_that_fails_tells_who_handed_it_over_and_training_goes_on() -> None:
    jobs = JobQueue()

    def fail() -> None:
        raise ArithmeticError("bad luck")

    failed, fine = jobs.put(fail), jobs.put(lambda: 5)
    drain(jobs)
    with pytest.raises(ArithmeticError, match="bad luck"):
        failed.result(timeout=0)
    assert fine.result(timeout=0) == 5


def test_a_job_that_nobody_waits_for_any_more_is_not_done() -> None:
    jobs, done = JobQueue(), list[str]()
    future = jobs.put(lambda: done.append("cancelled"))
    jobs.put(lambda: done.append("kept"))
    assert future.cancel()
    drain(jobs)
    assert done == ["kept"]
