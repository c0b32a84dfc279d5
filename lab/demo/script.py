"""The demo as a script: the scenes in their order, and the final comparison."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from lab.demo import alert_scenes, billing_scenes, state_scenes
from lab.demo.alertmanager import Alertmanager
from lab.demo.aws import REGION, embedded
from lab.demo.control_plane import control_plane
from lab.demo.daemons import Daemons
from lab.demo.fifo import queue
from lab.demo.screen import Screen
from lab.demo.snapshot import EXPORTER, FORWARDER, SCRAPER
from lab.demo.stage import Stage
from lab.demo.storage import BUCKET, bucket
from lab.demo.verdict import verdict
from lab.demo.workload_process import ORGANIZATION, REPLICA, SERVICE
from lab.fakes.state import HEALTHY, FakeClickHouse

DAEMONS = (SCRAPER, EXPORTER, FORWARDER)


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene: its title and its function."""

    title: str
    play: Callable[[Stage], Awaitable[None]]


async def the_daemons_start(stage: Stage) -> None:
    """Start the daemons before the workload, so that no CPU precedes its first record."""
    pid = await stage.daemons.start()
    stage.screen.say(f"byoc-agents run {' '.join(DAEMONS)}: one process, pid {pid}")
    await stage.until("the target is missed", lambda now: bool(now.target_error))
    stage.screen.say(f"the scraper looks for a process {stage.target}, which is not there yet")


async def the_end(stage: Stage) -> None:
    """Stop the daemons: they close the open window, seal, drain and exit with 0."""
    await billing_scenes.let_rest(stage)
    await stage.daemons.stop()
    stage.screen.say(
        "SIGTERM: the daemons have closed every open window, drained and exited with 0"
    )
    await stage.runs[-1].end()
    await stage.look()


SCENES = (
    Scene("The daemons start", the_daemons_start),
    Scene("Usage reaches S3", billing_scenes.usage_reaches_s3),
    Scene("State reaches SQS: ClickHouse misbehaves", state_scenes.clickhouse_misbehaves),
    Scene("An alert reaches the control plane", alert_scenes.an_alert_goes_out),
    Scene("The control plane is down", alert_scenes.the_control_plane_is_down),
    Scene("S3 refuses", billing_scenes.s3_refuses),
    Scene("The daemons are killed", billing_scenes.the_daemons_are_killed),
    Scene("S3 is back", billing_scenes.s3_is_back),
    Scene("The control plane is back", alert_scenes.the_control_plane_is_back),
    Scene("The workload restarts", billing_scenes.the_workload_restarts),
    Scene("The end", the_end),
)


async def play(directory: Path) -> int:
    """Play all scenes in an existing directory. Return 0 if the figures agree, else 1."""
    screen = Screen()
    async with _set(directory, screen) as stage:
        async with screen.moving():
            for number, scene in enumerate(SCENES, 1):
                screen.scene(scene.title, number, len(SCENES))
                await scene.play(stage)
        stage.storage.copy(directory / "bucket")
        return await verdict(stage)


@asynccontextmanager
async def _set(directory: Path, screen: Screen) -> AsyncIterator[Stage]:
    """Yield the stage; processes that the scenes start on it end with it."""
    target = f"demo-{os.getpid()}"  # comm holds 15 bytes
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        screen.say("an S3 and an SQS of our own (moto), a stand-in ClickHouse, a control plane")
        aws = await enter(embedded())
        storage, messages = await enter(bucket(aws)), await enter(queue(aws))
        plane, settings = await enter(control_plane())
        clickhouse = await enter(FakeClickHouse())
        clickhouse.server.rows = HEALTHY
        session = await enter(aiohttp.ClientSession())
        settings |= _settings(target, messages.url, clickhouse.url) | aws.environ()
        yield Stage(
            directory=directory,
            screen=screen,
            storage=storage,
            queue=messages,
            plane=plane,
            clickhouse=clickhouse,
            alertmanager=Alertmanager(session),
            daemons=await enter(Daemons(DAEMONS, settings, directory, session)),
            stack=stack,
            target=target,
        )


def _settings(target: str, queue_url: str, clickhouse_url: str) -> dict[str, str]:
    return {
        "BYOC_ORGANIZATION_ID": ORGANIZATION,
        "BYOC_SERVICE_ID": SERVICE,
        "BYOC_REPLICA": REPLICA,
        "BYOC_REGION": REGION,
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_BILLING_BUCKET": BUCKET,
        "BYOC_BILLING_TARGET": f"process:{target}",
        "BYOC_STATE_QUEUE_URL": queue_url,
        "BYOC_CLICKHOUSE_URL": clickhouse_url,
        **billing_scenes.SETTINGS,
        **state_scenes.SETTINGS,
        **alert_scenes.SETTINGS,
    }
