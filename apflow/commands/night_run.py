"""``apflow night start``, ``status``, ``stop``, ``reprocess`` and ``catchup``."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from apflow.commands.options import Ppdb
from apflow.errors import BadRequest, ServiceError

_Butler = Annotated[str, typer.Option(metavar="REPO", help="Butler repository.")]
_Night = Annotated[str, typer.Option(metavar="YYYYMMDD", help="Day of observation; default: the newest night.")]
_PAUSE_S = 0.2
#: A night that is started in the background has this long until it listens.
_UP_S = 180.0


def start(
    butler: _Butler,
    cluster: Annotated[
        str, typer.Option(help="local, slurm, htcondor, kubernetes, ssh, or tcp://host:port of a scheduler.")
    ] = "local",
    camera: Annotated[str, typer.Option(help="Camera that the repository has to be of; default: any.")] = "",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Workers for CCDs; 0: as apflow plan says, here at most the cores.")
    ] = 0,
    gather_workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Workers for the gathers; 0: as planned.")
    ] = 0,
    memory: Annotated[str, typer.Option(help="Of one worker; beyond it, it is restarted.")] = "6GiB",
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt everything, by a certificate of this night.")] = False,
    dashboard: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the dashboard, which has no authentication; port 0: any free.")
    ] = "127.0.0.1:0",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the kind of cluster; value as JSON or text.")
    ] = None,
    night: Annotated[str, typer.Option(metavar="YYYYMMDD", help="Day of observation; default: tonight's.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background, once it listens.")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="Take events from Kafka, as configured.")] = False,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Take events from a file of JSON lines.")] = None,
    http: Annotated[str, typer.Option(metavar="[HOST]:PORT", help="Take events by POST, see apflow listen.")] = "",
    landing: Annotated[Path | None, typer.Option(metavar="DIR", help="Where raws land; default: REPO/landing.")] = None,
    detectors: Annotated[str, typer.Option(help="As in apflow listen.")] = "science",
    ppdb: Annotated[str, Ppdb] = "",
    alerts: Annotated[str, typer.Option(help="As in apflow replay; default: as configured.")] = "",
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="As in apflow listen.")] = None,
    image_timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0.1, max=86_400)] = None,
) -> None:
    """Start a night: a cluster sized to the focal plane, and the service that processes visits on it.

    Both are started again whenever they end before their time, and go on where they were; so does a night that is
    started again after Ctrl-C, SIGTERM or a crash. A file of events is followed. End it by apflow night stop.

    Example: apflow night start --butler replay/butler --http :8090 --detach
    """
    from apflow.cluster.holder import REQUEST
    from apflow.operate.listen.start import Request
    from apflow.operate.night.begin import cluster_request, prepared_folder
    from apflow.operate.night.folder import LOGS, NIGHT, read_json, save_request, supervising
    from apflow.operate.night.supervise import main

    folder = prepared_folder(butler, night, camera)
    request = Request(
        butler=str(Path(butler).resolve()),
        kafka=kafka,
        file=str(file.resolve()) if file else "",
        follow=bool(file),
        http=http,
        landing=str(landing.resolve()) if landing else "",
        detectors=detectors,
        ppdb=ppdb,
        alerts=alerts,
        rules=str(rules.resolve()) if rules else "",
        image_timeout_s=image_timeout,
        day_obs=int(folder.name),
    )
    asked = cluster_request(
        request,
        folder,
        kind=cluster,
        workers=workers,
        gather_workers=gather_workers,
        memory=memory,
        tls=tls,
        dashboard=dashboard,
        options=_options(option or []),
    )
    with supervising(folder):  # nobody else's requests are written over
        asked.save(folder / REQUEST)
        save_request(folder, request)
    if not detach:
        raise typer.Exit(main(folder))
    (folder / LOGS).mkdir(exist_ok=True)
    log = folder / LOGS / "night.out"
    with log.open("ab") as out:
        begin = out.tell()
        words = [sys.executable, "-m", "apflow.operate.night.supervise", str(folder)]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    until = time.monotonic() + _UP_S
    while not ((told := read_json(folder / NIGHT)).get("pid") == process.pid and told["children"]["driver"]["is_up"]):
        if (code := process.poll()) is not None:
            typer.echo(log.read_bytes()[begin:].decode(errors="replace"), err=True, nl=False)
            raise typer.Exit(code or 1)
        if time.monotonic() > until:
            raise ServiceError(f"night {folder.name} does not listen after {_UP_S:g} s; see {log}")
        time.sleep(_PAUSE_S)
    typer.echo(log.read_bytes()[begin:].decode(errors="replace"), nl=False)
    typer.echo(f"night {folder.name} runs (pid {process.pid}); end it by: apflow night stop --butler {butler}")


def status(
    butler: _Butler,
    night: _Night = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show how a night stands: processes, cluster, visits, alerts, what LSE-61 asks for.

    Exit codes: 0 it runs, 3 it does not.

    Example: apflow night status --butler replay/butler
    """
    from apflow.operate.night.folder import chosen_night
    from apflow.operate.night.status import night_status

    found = night_status(chosen_night(butler, night))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in _told(found):
            typer.echo(line)
    if not found["running"]:
        raise typer.Exit(3)


def stop(
    butler: _Butler,
    night: _Night = "",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.0, help="For what is under way.")] = 600.0,
) -> None:
    """End a night: begin nothing more, wait for what is under way, then write the report.

    What is still under way after the timeout goes on when the night is started again.

    Example: apflow night stop --butler replay/butler
    """
    from apflow.commands.report import report
    from apflow.operate.night.end import end_night
    from apflow.operate.night.folder import chosen_night

    folder = chosen_night(butler, night)
    if not end_night(folder, timeout, typer.echo):
        typer.echo(f"after {timeout:g} s visits were still under way: they go on when the night is started again")
    report(folder.name, butler, None, None)


def reprocess(
    butler: _Butler,
    failed: Annotated[bool, typer.Option("--failed", help="Detectors that ended as failed or bad_data.")] = False,
    cause: Annotated[str, typer.Option(metavar="TEXT", help="Those whose cause holds this text.")] = "",
    visit: Annotated[int | None, typer.Option(metavar="N", help="Those of this visit.")] = None,
    night: _Night = "",
    ppdb: Annotated[str, Ppdb] = "",
) -> None:
    """Process detectors again that failed, at once: by the night if it runs, else here.

    Example: apflow night reprocess --failed --butler replay/butler
    """
    from apflow.operate.night.again import FAILED

    if not failed:
        raise BadRequest("reprocess without --failed is not accepted: what is done is never done again")
    _again(butler, night, FAILED, cause, visit, ppdb, idle=False)


def catchup(
    butler: _Butler,
    visit: Annotated[int | None, typer.Option(metavar="N", help="Those of this visit.")] = None,
    night: _Night = "",
    ppdb: Annotated[str, Ppdb] = "",
) -> None:
    """Process detectors that were missed, because an image or a calib came too late.

    A night that runs does so when nothing was announced for a while ([night] catch_up_after_s), a visit at a time,
    which steps aside for what comes. Else it is done here and now.

    Example: apflow night catchup --butler replay/butler
    """
    from apflow.operate.night.again import MISSED

    _again(butler, night, MISSED, "", visit, ppdb, idle=True)


def _again(butler: str, night: str, states: Any, cause: str, visit: int | None, ppdb: str, *, idle: bool) -> None:
    from apflow.operate.interrupts import interruptible
    from apflow.operate.listen.start import Request
    from apflow.operate.night.again import order_of, process
    from apflow.operate.night.folder import chosen_night

    folder = chosen_night(butler, night)
    name = "catchup" if idle else "reprocess"
    order, n, unknown = order_of(
        butler, int(folder.name), states, cause=cause, visit=visit, idle=idle, reason=f"apflow night {name}", ppdb=ppdb
    )
    if unknown:
        listed = ", ".join(map(str, unknown[:5]))
        typer.echo(f"{len(unknown)} visits were not announced to a service and are left out: {listed}", err=True)
    request = Request(butler=butler, detectors="all", ppdb=ppdb, day_obs=int(folder.name))
    with interruptible():
        here = process(order, folder, request, lambda line: typer.echo(line))
    if not here:
        typer.echo(f"{n} detectors of {len(order.visits)} visits were given to the night that runs")


def _options(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadRequest(f"--option {word!r} is not accepted: NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _told(found: dict[str, Any]) -> list[str]:
    since = _utc(found["started_unix"])
    lines = [
        f"night {found['night']}: runs since {since} UTC (pid {found['pid']})"
        if found["running"]
        else f"night {found['night']}: does not run; started {since}, ended {_utc(found['ended_unix'])} UTC"
    ]
    for name, child in found["processes"].items():
        state = "up" if child["is_up"] else "coming up"
        again = f", started {child['starts']} times" if child["starts"] > 1 else ""
        lines.append(f"{name}: {state} (pid {child['pid']}){again}")
    if cluster := found["cluster"]:
        lines.append(
            f"cluster {cluster['kind']}: {cluster['n_workers']} + {cluster['gather_workers']} workers at "
            f"{cluster['address']}; dashboard {cluster['dashboard']}"
        )
    visits, detectors, alerts = found["visits"], dict(found["detector_visits"]), found["alerts"]
    expected = detectors.pop("expected")
    lines.append(f"visits: {visits['ended']} ended, {visits['under_way']} under way")
    states = ", ".join(f"{n} {state}" for state, n in sorted(detectors.items())) or "none ended"
    lines.append(f"detector-visits: {expected} expected; {states}")
    lines.append(f"alerts: {alerts['made']} made, {alerts['published']} published, {alerts['unsent']:g} unsent")
    latency = found["latency_s"]
    if latency["p50"] is not None:
        lines.append(f"readout to alerts: {latency['p50']:.1f} s (median), {latency['p98']:.1f} s (98 %)")
    lines += [f"{name}: {value:.4g}" for name, value in found["verdict"].items() if value is not None]
    lines += [f"{what}: {n}" for what, n in sorted(found["events"].items())]
    return lines


def _utc(unix: float | None) -> str:
    return "-" if unix is None else dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
