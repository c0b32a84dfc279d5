"""Scenes of the alert forwarder: alerts arrive, also after outages."""

from byoc_agents.alerts.payload import Status
from lab.demo.alertmanager import PRIVATE
from lab.demo.snapshot import FORWARDER
from lab.demo.stage import Stage

SETTINGS = {"BYOC_ALERTS_LISTEN": "127.0.0.1:0", "BYOC_ALERTS_HEARTBEAT_SECONDS": "10"}
READONLY, DISK = "ClickHouseReplicaReadOnly", "ClickHouseDiskLow"


async def an_alert_goes_out(stage: Stage) -> None:
    """Send one alert while everything works."""
    await _notify(stage, READONLY, "firing")
    await stage.until("the alert arrives", lambda now: len(now.alerts) == 1)
    stage.screen.say("it is at the control plane, signed; only allow-listed fields left")


async def the_control_plane_is_down(stage: Stage) -> None:
    """Send two more alerts while the control plane is down."""
    stage.plane.down = True
    stage.screen.say("the control plane answers 503 from now on")
    await _notify(stage, READONLY, "resolved")
    await _notify(stage, DISK, "firing")
    now = await stage.until("alerts wait on disk", lambda now: now.held_up(FORWARDER) > 0)
    stage.screen.say(now.backlog(FORWARDER).sentence("the control plane"))


async def the_control_plane_is_back(stage: Stage) -> None:
    """Bring the control plane back; both alerts arrive."""
    stage.plane.down = False
    stage.screen.say(f"the control plane is back; it has refused {stage.plane.refused} deliveries")
    await stage.until(
        "the alerts arrive", lambda now: len(now.alerts) >= len(stage.alertmanager.accepted)
    )
    stage.screen.say("every alert that the forwarder said 200 to has arrived, in order")


async def _notify(stage: Stage, name: str, status: Status) -> None:
    now = await stage.until("the webhook listens", lambda now: bool(now.webhook))
    await stage.alertmanager.notify(now.webhook, name, status)
    stage.screen.say(f"Alertmanager: {name} is {status}; the forwarder has it on disk and says 200")


def alert_faults(stage: Stage) -> list[str]:
    """Return the problems with the alerts that the control plane has."""
    arrived = [(alert.labels["alertname"], alert.status) for alert in stage.plane.alerts]
    accepted = stage.alertmanager.accepted
    wrong = [] if arrived == accepted else [f"{FORWARDER}: {arrived} arrived, not {accepted}"]
    if any(PRIVATE.encode() in body for body in stage.plane.bodies):
        wrong.append(f"{FORWARDER}: a field left that is not on the allow-list")
    return wrong
