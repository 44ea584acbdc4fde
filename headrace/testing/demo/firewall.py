"""Security groups at work: refused with the reason, allowed by a rule, cut when the rule goes."""

from __future__ import annotations

import contextlib
import re
import time

from headrace.abi import Reason
from headrace.testing.demo.probe import Knock, Talk
from headrace.testing.demo.scene import Scene, milliseconds
from headrace.testing.demo.workload import ADMIN, WEB
from headrace.testing.wait import wait_until

SOON = 2.0
"""Seconds in which a change of policy must act; a quarter of one is usual, a busy machine takes more."""

PATIENCE = 15.0
SILENCE = 2.0
"""Seconds without an answer after which a connection is cut: TCP tries again after 0.2, 0.6 and 1.4 s."""

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def refused(scene: Scene) -> None:
    """A port that no rule names."""
    narrator, app, web = scene.narrator, scene.workloads["blue-app"], scene.workloads["blue-web"]
    narrator.chapter(
        "A connection is refused, and we ask why", f"blue-web also listens on {ADMIN}, which no rule allows."
    )
    with scene.counting("compute-2") as counted:
        text = scene.did("blue-app", f"curl -sS -m 1 {web.url(ADMIN)}")
        narrator.claim("no answer", "timed out" in text.lower())
    count = counted.get(Reason.ACL_TO_PORT, 0)
    narrator.claim("the drop is counted on blue-web's host, with its reason", count, f"{count} x ACL_TO_PORT")
    narrator.say("Where and why, stage by stage, and what is missing:")
    packet = f"tcp {app.ipv4}:40000 > {web.ipv4}:{ADMIN} syn"
    narrator.did(f"headrace trace --port blue-app '{packet}'")
    told = scene.cloud.headrace("trace", "--port", "blue-app", packet)
    narrator.saw("\n".join(line if "openstack" in line else short(line) for line in told.splitlines()))
    narrator.claim("the missing rule is named", f"--protocol tcp --dst-port {ADMIN}" in told)


def short(line: str) -> str:
    """Ids by how they begin."""
    return UUID.sub(lambda found: f"{found[0][:8]}..", line)


def rule_added(scene: Scene) -> object:
    """From the API's answer to traffic; returns the rule."""
    narrator, blue = scene.narrator, scene.tenants["blue"]
    narrator.chapter(
        "The rule is added",
        f"blue-app knocks at port {ADMIN} every 2 ms. We add the rule through the API and watch the clock.",
    )
    with Knock(scene.box("blue-app"), scene.workloads["blue-web"].ipv4, ADMIN) as knock:
        wait_until(lambda: knock.tries > 20, 5, "knocks")
        called = time.monotonic()
        rule = blue.allow(ADMIN)
        answered = time.monotonic()
        opened = knock.opened(PATIENCE)
    narrator.saw(f"the API answered after {milliseconds(answered - called)}")
    when = "never" if opened is None else since(called, answered, opened)
    narrator.claim(
        f"traffic flows {when}", opened is not None and opened - answered < SOON, f"after {knock.tries} knocks"
    )
    scene.fetch("blue-app", scene.workloads["blue-web"].url(ADMIN), "and there is the page", "this is blue-web")
    return rule


def rule_removed(scene: Scene, rule: object) -> None:
    """The connection that the rule allowed ends; its neighbour does not notice."""
    narrator, blue = scene.narrator, scene.tenants["blue"]
    app, web = scene.box("blue-app"), scene.workloads["blue-web"]
    narrator.chapter(
        "The rule is removed: the established connection is cut",
        f"Two connections from blue-app to blue-web are busy, on ports {ADMIN} and {WEB}. The rule for {ADMIN} goes.",
    )
    with (
        scene.counting("compute-2") as counted,
        Talk(app, web.ipv4, ADMIN) as doomed,
        Talk(app, web.ipv4, WEB) as other,
    ):
        wait_until(lambda: min(doomed.answers, other.answers) > 20, 5, "answers on both connections")
        other.longest_pause = 0.0
        called = time.monotonic()
        blue.forbid(rule)
        answered = time.monotonic()
        narrator.saw(f"the API answered after {milliseconds(answered - called)}")
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: doomed.quiet_for() > SILENCE, PATIENCE)
        cut, kept = doomed.quiet_for() > SILENCE, other.quiet_for() < 1
        when = since(called, answered, doomed.last) if cut else "never"
        told = f"{doomed.answers} answers before"
        narrator.claim(f"the connection on {ADMIN} is cut {when}", cut and doomed.last - answered < SOON, told)
        pause = f"{other.answers} answers, longest pause {milliseconds(other.longest_pause)}"
        narrator.claim(f"the one on {WEB} goes on", kept, pause)
    narrator.claim("the cut is counted with its reason", counted.get(Reason.CONNECTION_CUT, 0), "CONNECTION_CUT")


def since(called: float, answered: float, moment: float) -> str:
    """When something happened, told from the API's answer and from the call."""
    after = moment - answered
    told = (
        f"{milliseconds(after)} after the API's answer"
        if after >= 0
        else f"{milliseconds(-after)} before the API's answer"
    )
    return f"{told} ({milliseconds(moment - called)} after the call)"
