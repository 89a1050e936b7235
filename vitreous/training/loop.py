"""The training loop."""

import math
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from vitreous.data.batches import Batch, Order
from vitreous.errors import InputError, counted
from vitreous.model.vit import VisionTransformer
from vitreous.rundir import RunDir
from vitreous.training.health import Vital, diverged, suspects
from vitreous.training.incidents import Incidents, StepError, blaming, some
from vitreous.training.interruption import Interruption
from vitreous.training.journal import Journal, row_line
from vitreous.training.learner import Learner, gradient, make_update
from vitreous.training.measuring import HEADLINES, measure
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.steps import next_batch, row_steps, training_batches
from vitreous.training.world import ALONE, World

PATIENCE = 5  # updates in a row that may be refused before training goes back to an earlier state
LOOKS = 10  # times that a run of minutes is timed beside its rows of metrics
RETREATS = 5  # times that it goes back, each at half the learning rate, before it gives up
MOVED = 0.03  # share of the steps that are left, by which the end must move for a new plan
SAID = 0.25  # share of the steps that were told last, by which it must move to be told again
LAST_RETIMED = 0.9  # share of a run after which its plan stays as it is
LEAST_STEPS, LEAST_SHARE = 10, 0.1  # steps, or share of the budget, after which a plan may be shortened


@dataclass(frozen=True)
class Session:
    """A training under way: what learns and of what, and where it is written down."""

    learner: Learner
    job: Job
    run: RunDir
    journal: Journal
    incidents: Incidents


class Mark(NamedTuple):
    """A moment of a run: the step, and the seconds that it has trained for."""

    step: int
    seconds: float


def fit(
    job: Job,
    plan: Plan,
    model: VisionTransformer,
    run: RunDir,
    journal: Journal,
    interruption: Interruption | None = None,
    world: World = ALONE,
) -> nn.Module:
    """Trains to the plan's last step, from the newest checkpoint of the run where there is one. A run of minutes is
    timed now and then, and its last step moved.

    Returns the moving average of the weights. An update that is not finite, or far outside of what is usual, is not
    made; after five in a row training goes back to the last checkpoint that the plan asked for, at half the learning
    rate. Raises `InputError` where that does not help, and `StepError` where a step cannot be computed. A signal ends
    it, with a checkpoint of the last step that was made.
    """
    learner = Learner(model, job, plan, interruption, world)
    incidents = Incidents(run.path, mute=not world.first)
    session = Session(learner, job, run, journal, incidents)
    names = job.store.source.names
    if checkpoint := run.newest(journal.say):
        learner.restore(checkpoint)
        if learner.progress.step >= plan.steps and not learner.progress.owed:
            journal.say(f"all steps of the plan ({plan.steps:,}) were taken before: there is nothing left to train")
        else:
            journal.say(f"goes on from step {learner.progress.step:,} of {plan.steps:,}")
    else:
        run.save(learner.checkpoint())
    journal.settle(run.path, learner.progress.step)
    incidents.keep(learner.progress.incidents)
    learner.started -= learner.progress.seconds

    try:
        while (progress := learner.progress).step < (plan := learner.plan).steps or progress.owed:
            batches, order = training_batches(job, plan, world=world)
            rows = row_steps(order, plan)
            since = Mark(progress.step, learner.clock())
            steps = batches.steps(progress.step, plan.steps, plan.workers)
            with closing(steps), journal.bar("training", plan.steps, progress.step, lines=False) as bar:
                if progress.owed and not finish_step(session, order, rows):
                    continue
                while (batch := next_batch(steps, progress.step, order, names)) is not None:
                    learner.interruption.check()
                    with blaming(progress.step, batch.numbers, names):
                        vital = gradient(learner, batch)
                    with learner.interruption.held(), learner.changing():
                        with blaming(progress.step, batch.numbers, names):
                            wrong = make_update(learner, vital)
                        if wrong:
                            report(session, batch, vital, wrong)
                        progress.count(vital, made=not wrong)
                    if not finish_step(session, order, rows):
                        break
                    bar(progress.step)
                    if progress.step in rows or progress.step % math.ceil(plan.steps / LOOKS) == 0:
                        progress.seconds = learner.clock()
                        learner.plan = keep_to_budget(session, order, since, progress.step in rows)
                        if learner.plan is not plan:
                            break
                        since = Mark(progress.step, progress.seconds)
    except (KeyboardInterrupt, SystemExit, StepError):
        with learner.interruption.held():
            keep_what_is_done(session)
        raise
    return learner.average.module


def finish_step(session: Session, order: Order, rows: set[int]) -> bool:
    """What follows a step: a row of metrics and a checkpoint where they are due. False where training had to go back
    to an earlier state instead.
    """
    learner, job, run, journal = session.learner, session.job, session.run, session.journal
    progress, plan = learner.progress, learner.plan
    lost = progress.refused >= PATIENCE or diverged(progress.recent, learner.guessing)
    row = None
    if progress.step in rows and not lost:
        progress.seconds = learner.clock()
        row = measure(learner, job, order)
    with learner.interruption.held():
        progress.seconds = learner.clock()
        progress.owed = False
        if row:
            journal.row(row)
            journal.say(row_line(row, HEADLINES[job.task.kind]))
            progress.loss_sum, progress.loss_count = 0.0, 0
        planned = progress.step % plan.save_every == 0 if plan.save_every else progress.step in rows
        planned = planned or progress.step == plan.steps
        timely = 0 < plan.save_seconds <= learner.unsaved()
        if not lost and not progress.refused and (planned or timely):
            lost = not learner.save(run, planned=planned)
        elif progress.step == plan.steps and progress.refused:
            lost = lost or not learner.is_finite(learner.checkpoint())
        if lost:
            retreat(session)
            journal.settle(run.path, learner.progress.step)
        return not lost


def report(session: Session, batch: Batch, vital: Vital, wrong: str) -> None:
    """Says, and writes to incidents.csv, why an update is not made, and which pictures it would have come from."""
    learner, progress, names = session.learner, session.learner.progress, session.job.store.source.names
    pictures = [names[int(i)] for i in batch.numbers]
    odd = learner.world.together([pictures[row] for row in suspects(batch.pixels, batch.targets)])
    pictures = learner.world.together(pictures)
    rate = learner.plan.rate(progress.step) * progress.rate_scale
    progress.incidents += 1
    session.incidents.add(progress.step + 1, wrong, vital, rate, odd, pictures)
    which = f"because of {some(odd)}" if odd else f"its pictures are {some(pictures)}"
    session.journal.say(f"step {progress.step + 1}: {wrong}; the update is not made; {which}")


def retreat(session: Session) -> None:
    """Goes back to the last checkpoint that the plan asked for, at half the learning rate."""
    learner, run, journal, incidents = session.learner, session.run, session.journal, session.incidents
    before = learner.progress
    if before.refused:
        why = f"{before.refused} updates in a row were not made"
    elif diverged(before.recent, learner.guessing):
        why = f"the loss is far above that of guessing ({learner.guessing:.3g})"
    else:
        why = "the weights are not finite"
    checkpoint = run.newest(journal.say, until=before.anchor)
    if checkpoint is None or before.retreats == RETREATS:
        advice = "try a lower --lr" + (", or --precision fp32" if learner.plan.precision == "bf16" else "")
        listed = f"; {incidents.path} lists the steps and their pictures" if before.incidents else ""
        raise InputError(
            f"training does not stay finite, after {counted(before.retreats, 'return')} to an earlier state: {why}; "
            f"{advice}{listed}; the last good state is in {run.path / 'last'}"
        )
    with learner.changing():
        learner.restore(checkpoint)
        back, scale = learner.progress, before.rate_scale / 2
        back.rate_scale, back.retreats, back.incidents = scale, before.retreats + 1, before.incidents + 1
    run.forget_after(back.step)
    incidents.add(before.step, f"{why}: back to step {back.step}", rate=learner.plan.rate(back.step) * scale)
    journal.say(f"{why}: back to step {back.step}, at {scale:g} of the rate")


def keep_to_budget(session: Session, order: Order, since: Mark, row: bool) -> Plan:
    """The plan, or where its end has moved away from the budget a new one, which is written before it is used.

    `since`: when it was last looked at; `row`: whether a row of metrics was made now.
    """
    plan, step, seconds = session.learner.plan, session.learner.progress.step, session.learner.progress.seconds
    if not plan.budget or step <= plan.points[-1][0] or plan.done(step) > LAST_RETIMED:
        return plan
    # Half of it the pace since the last look, half that of the whole run: a passing stall does not end a run.
    lately = (seconds - since.seconds) / plan.predicted(since.step, step, rows=row)
    slower = (lately + seconds / plan.predicted(0, step, rows=order.epochs_at(step) / plan.row_every)) / 2
    new = plan.retimed(step, seconds, slower, order.steps_before(plan.row_every))
    if abs(new.steps - plan.steps) < MOVED * (plan.steps - step):
        return plan
    if new.steps < plan.steps and step < LEAST_STEPS and seconds < LEAST_SHARE * plan.budget:
        return plan
    session.run.write_json("plan.json", new.to_json())
    if abs(new.steps - session.learner.told) > SAID * session.learner.told:
        session.learner.told = new.steps
        session.journal.say(f"plan: {counted(new.steps, 'step')}, to keep to the time")
    return new


def keep_what_is_done(session: Session) -> None:
    """Writes a checkpoint of the last step that was made, before training is left. Of several processes the first does,
    by itself, where it has the whole state: the others may be anywhere.
    """
    learner, journal = session.learner, session.journal
    if learner.divided or not learner.world.first:
        return
    try:
        if learner.whole and learner.save(session.run, alone=True):
            journal.say(f"step {learner.progress.step:,} is saved")
    except (OSError, MemoryError, RuntimeError) as fault:  # as torch has it where a GPU's memory is full
        journal.say(f"what was done since the last checkpoint cannot be saved: {fault}")
