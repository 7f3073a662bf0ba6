"""Trials in the jobs of a cluster: handed over, followed through the run's folder, handed over again where lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records.record import RECORD
from benchmarks.storage.weights import write_config
from benchmarks.trials.claims import Owner, claim, worker_of
from benchmarks.trials.executors.interface import RETRIES, Cluster, State, task_of
from benchmarks.trials.executors.note import JobNote, forget_note, note_of
from benchmarks.trials.processes import TO_RUN, Outcome, bring_up_to_date, lacks_throughput
from benchmarks.trials.schedule import Plan, PlannedTrial
from benchmarks.trials.watching.events import Begun, Ended, Plain, Reported, Watcher, Watchers

POLL_SECONDS = 2.0


class Remote:
    """An executor that has a cluster work on the trials, each trained by so many `ranks`."""

    def __init__(self, cluster: Cluster, ranks: int = 1) -> None:
        self.cluster, self.ranks = cluster, ranks

    def at_once(self, plan: Plan) -> int:
        """See `Executor`: nothing is known of the cluster, which may have a place for each."""
        return max(1, len(plan.trials))

    def execute(self, plan: Plan, watching: Sequence[Watcher] = (Plain(),)) -> Outcome:
        """See `Executor`."""
        outcome, watchers = Outcome(), Watchers(watching)
        try:
            bring_up_to_date(plan, watchers)
            Following(plan, self.cluster, self.ranks, watchers, outcome).run()
        finally:
            watchers.close(hurry=outcome.interrupted)
        return outcome


class Following:
    """Trials of a plan that are unfinished: those that wait to be handed over, and those that a job is there for."""

    def __init__(self, plan: Plan, cluster: Cluster, ranks: int, watchers: Watchers, outcome: Outcome) -> None:
        self.plan, self.cluster, self.ranks = plan, cluster, ranks
        self.watchers, self.outcome = watchers, outcome
        self.waiting = [planned for planned in plan.trials if _is_unfinished(planned)]
        self.jobs = dict[str, PlannedTrial]()
        self.handed = Counter[Path]()
        self.written = {planned.folder: _record_written(planned) for planned in self.waiting}
        self.seen, self.left = dict[Path, Owner](), set[Path]()

    def run(self) -> None:
        """Hand over and follow until nothing is left, or the user interrupts: what the cluster has stays there."""
        try:
            self._adopt()
            while self.waiting or self.jobs:
                self._hand_over()
                self._follow()
                if self.waiting or self.jobs:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self.watchers.say(self.cluster.leave(list(self.jobs)))

    def _adopt(self) -> None:
        """Follow the jobs of an earlier run that are still there."""
        notes = {planned.folder: note_of(planned.folder) for planned in self.waiting}
        known = {one.job for one in notes.values() if one is not None and one.cluster == self.cluster.name}
        alive = {job for job, state in self.cluster.states(known).items() if state in ("queued", "running")}
        for planned in list(self.waiting):
            note = notes[planned.folder]
            if note is not None and note.cluster == self.cluster.name and note.job in alive:
                self._expect(planned, note.job)

    def _hand_over(self) -> None:
        """Submit what waits and nobody works on."""
        most = self.cluster.most
        room = len(self.waiting) if most is None else most - len(self.jobs)
        ready = [planned for planned in list(self.waiting) if self._is_ready(planned)][: max(0, room)]
        if not ready:
            return
        self.written |= {planned.folder: _record_written(planned) for planned in ready}
        names = self.cluster.submit([task_of(planned, self.plan, self.ranks) for planned in ready])
        for planned, job in zip(ready, names, strict=True):
            JobNote(self.cluster.name, job).write(planned.folder)
            self._expect(planned, job)

    def _expect(self, planned: PlannedTrial, job: str) -> None:
        """A job is there for the trial."""
        self.waiting.remove(planned)
        self.jobs[job] = planned
        self.handed[planned.folder] += 1

    def _is_ready(self, planned: PlannedTrial) -> bool:
        """Whether a waiting trial can be handed over; its configuration is in its folder then."""
        if not _is_unfinished(planned):
            self.waiting.remove(planned)
            self.watchers.tell(Ended(planned))
            return False
        held = claim(planned.folder, lambda text: None) if worker_of(planned.folder) is None else None
        if held is None:
            if planned.folder not in self.left:
                self.left.add(planned.folder)
                self.watchers.say(f"{planned.name}: is left to another run ({worker_of(planned.folder) or 'unknown'})")
            self._look(planned)
            return False
        if planned.work in ("train", "evaluate"):
            write_config(planned.trial, planned.folder)
        held.release()
        return True

    def _follow(self) -> None:
        """Tell how far trials are, and settle those whose jobs have ended."""
        states = self.cluster.states(self.jobs)
        for job, planned in list(self.jobs.items()):
            self._look(planned)
            state = states.get(job, "ended")
            if state in ("ended", "cancelled"):
                del self.jobs[job]
                self._settle(planned, job, state)

    def _look(self, planned: PlannedTrial) -> None:
        """Tell what the owner of a trial's claim says."""
        owner, before = worker_of(planned.folder), self.seen.get(planned.folder)
        if owner is None or owner == before:
            return
        if before is None or before.since != owner.since:
            self.watchers.tell(Begun(planned))
        if owner.phase:
            self.watchers.tell(Reported(planned, owner.phase, owner.done, owner.total))
        self.seen[planned.folder] = owner

    def _settle(self, planned: PlannedTrial, job: str, state: State) -> None:
        """Note how a trial whose job has gone has ended; where nothing says so, it waits again."""
        note, worker, record = JobNote(self.cluster.name, job), worker_of(planned.folder), planned.record
        if not _is_unfinished(planned):
            forget_note(planned.folder)
        elif record is not None and record.error and _record_written(planned) != self.written[planned.folder]:
            self.outcome.note(planned, record.error)
            forget_note(planned.folder)
        elif worker is not None and worker.job != str(note):  # the job found somebody else at work, and left
            self.handed[planned.folder] -= 1
            self.waiting.append(planned)
            return
        elif state == "cancelled" or self.handed[planned.folder] > RETRIES:
            reason = f"{note} was cancelled" if state == "cancelled" else f"{note}, the last of several, left no record"
            self.outcome.note(planned, reason)
            JobNote(note.cluster, note.job, reason).write(planned.folder)
        else:
            self.waiting.append(planned)
            return
        self.watchers.tell(Ended(planned))


def _is_unfinished(planned: PlannedTrial) -> bool:
    return planned.work in TO_RUN or lacks_throughput(planned)


def _record_written(planned: PlannedTrial) -> int:
    """When the trial's record was written; 0 without one."""
    path = planned.folder / RECORD
    return path.stat().st_mtime_ns if path.exists() else 0
