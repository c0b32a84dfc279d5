"""Scenes of the billing scraper: usage arrives, through an outage, a kill and a restart."""

from lab.demo.compare import compare
from lab.demo.snapshot import FORWARDER, SCRAPER, Snapshot, count
from lab.demo.stage import Stage
from lab.demo.workload_process import WorkloadRun

SAMPLE_SECONDS = 0.5
WINDOW_SECONDS = 5
SEAL_SECONDS = 3
SETTINGS = {
    "BYOC_BILLING_SAMPLE_SECONDS": f"{SAMPLE_SECONDS:g}",
    "BYOC_BILLING_WINDOW_SECONDS": f"{WINDOW_SECONDS}",
    "BYOC_BILLING_SEAL_SECONDS": f"{SEAL_SECONDS}",
    "BYOC_LIMITS_CPU_MILLICORES": "2000",
    "BYOC_LIMITS_MEMORY_BYTES": f"{1 << 30}",
}
MIN_CORE_SECONDS = 3  # of a run: /proc cuts four figures to 10 ms each, which is 2 % of 2 s
IDLE_SAMPLES = 3
OUTAGE_RECORDS = 2
DEAD_SECONDS = 2.0


async def usage_reaches_s3(stage: Stage) -> None:
    """Start the workload, and wait until its usage arrives."""
    stage.screen.say(
        f"a sample every {SAMPLE_SECONDS:g} s, a record every {WINDOW_SECONDS} s,"
        f" an object every {SEAL_SECONDS} s (in production 5 s, 60 s, 900 s)"
    )
    run = await stage.start_workload()
    stage.screen.say(f"the workload starts: pid {run.pid}, with children that come and go")
    await stage.until("usage is in the bucket", lambda now: used(now, run) > 0)
    stage.screen.say("its first record is in the bucket")


async def s3_refuses(stage: Stage) -> None:
    """Answer 503 to every PUT; the records stay on disk."""
    stage.storage.door.shut = True
    stage.screen.say("S3 answers every PUT with 503 Slow Down from now on")
    now = await stage.until(
        "records wait on disk", lambda now: now.held_up(SCRAPER) >= OUTAGE_RECORDS
    )
    stage.screen.say(now.backlog(SCRAPER).sentence("S3"))


async def the_daemons_are_killed(stage: Stage) -> None:
    """Kill the daemons with SIGKILL."""
    before = await stage.look()
    held = {daemon: before.backlog(daemon).events for daemon in (SCRAPER, FORWARDER)}
    await stage.daemons.kill()
    unsent = ", ".join(f"{daemon} {number}" for daemon, number in held.items())
    stage.screen.say(f"kill -9, with records that are not sent yet: {unsent}")
    stage.screen.say("meanwhile the workload works on")
    await stage.pause(DEAD_SECONDS)
    pid = await stage.daemons.start()
    stage.screen.say(f"started again: pid {pid}")
    await stage.until(
        "the backlog is there again",
        lambda now: all(now.backlog(daemon).events >= number for daemon, number in held.items()),
    )
    stage.screen.say("all of them are still there")


async def s3_is_back(stage: Stage) -> None:
    """Let the backlog drain; ids and keys are the same as before."""
    stage.storage.door.shut = False
    refused = count(stage.storage.door.refused, "PUT")
    stage.screen.say(f"S3 takes objects again; it has refused {refused}")
    await stage.until("the backlog drains", lambda now: now.has_sent_all(SCRAPER))
    stage.screen.say("the backlog has drained")


async def the_workload_restarts(stage: Stage) -> None:
    """Restart the workload, with a new pid and a new counter."""
    old = stage.runs[-1]
    await let_rest(stage)
    await old.end()
    stage.screen.say(f"pid {old.pid} has ended; its own rusage: {old.rusage.core_seconds:.2f} s")
    await stage.pause(DEAD_SECONDS)
    new = await stage.start_workload()
    stage.screen.say(f"the workload starts again: pid {new.pid}")
    await stage.until(
        "its restart is recorded",
        lambda now: now.restarts >= 1 and used(now, new) >= MIN_CORE_SECONDS,
    )
    stage.screen.say("the bucket knows of both runs, and of the time between them")


async def let_rest(stage: Stage) -> None:
    """Make the workload idle: no source sees CPU that it uses after the last sample."""
    await stage.runs[-1].rest()
    stage.screen.say(
        f"the workload rests for {IDLE_SAMPLES} samples: CPU used after the last one would be lost"
    )
    await stage.sampled(IDLE_SAMPLES)


def used(now: Snapshot, run: WorkloadRun) -> float:
    """Return the core seconds billed for a run so far."""
    return compare(now.records, [run])[0].billed_core_seconds
