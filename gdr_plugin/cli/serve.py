"""`gdr serve`: rewards over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.text import line_of


@app.command()
def serve(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The gdr.yaml that describes the reward.")] = Path("gdr.yaml"),
    set_: options.Set = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is only reachable from this machine.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 5000,
    token: Annotated[
        str | None, typer.Option(envvar="GDR_TOKEN", help="Bearer token that requests must carry.", show_envvar=True)
    ] = None,
    max_wait_ms: Annotated[
        float, typer.Option(help="How long the first sample of a batch waits for others, in milliseconds.")
    ] = 10.0,
    max_batch: Annotated[int, typer.Option(help="Largest number of samples in a batch.")] = 64,
    queue: Annotated[
        int, typer.Option(help="Number of samples that may wait for the models; further requests are held back.")
    ] = 4096,
    max_body_mb: Annotated[float, typer.Option(help="Largest body of a request, in MiB.")] = 8.0,
    drain_s: Annotated[
        float, typer.Option(help="How long requests may take to finish after SIGTERM, in seconds.")
    ] = 25.0,
    policy_tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the policy's tokenizer: it rendered templated text, or made the ids."),
    ] = None,
    teacher: Annotated[
        bool,
        typer.Option(
            "--teacher", help="Also answer log-probs of token ids, for trainers that distil (docs/teacher.md)."
        ),
    ] = False,
    teacher_domain: Annotated[
        str | None, typer.Option(help="Domain of ids that name none; default: routing.default_domain.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Score templated text as it is, without guidance.")] = False,
    scale: Annotated[
        float, typer.Option(help="Factor on the rewards (of a teacher: on each token's) that trainers receive.")
    ] = 1.0,
    clip: Annotated[
        float | None, typer.Option(help="Bound on the absolute value of the scaled rewards that trainers receive.")
    ] = None,
    unscored: Annotated[
        str,
        typer.Option(
            metavar="raise|NUMBER",
            help="What trainers receive for a sample that cannot be scored: an error, or a number.",
        ),
    ] = "raise",
    temperature: Annotated[float, typer.Option(help="Divides a reward before it is squashed into 0..1.")] = 1.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request on standard error.")] = False,
) -> None:
    """Serve rewards over HTTP until SIGTERM."""
    from gdr_plugin.api.errors import ConfigError
    from gdr_plugin.api.unscored import Unscored
    from gdr_plugin.config.load import named_config
    from gdr_plugin.serve import BatchingService, ServeSettings
    from gdr_plugin.serve.run import is_loopback, listen
    from gdr_plugin.serve.run import serve as run

    settings = ServeSettings(
        max_wait_ms=max_wait_ms,
        max_batch=max_batch,
        queue=queue,
        max_body_mb=max_body_mb,
        drain_s=drain_s,
        token=token,
        policy_tokenizer=policy_tokenizer,
        plain=plain,
        scale=scale,
        clip=clip,
        unscored=Unscored.of(unscored, name="--unscored"),
        temperature=temperature,
    )
    checked, _ = named_config(options.configured(config, set_))
    if teacher and policy_tokenizer is None:
        raise ConfigError("--teacher scores the policy's token ids: name its tokenizer with --policy-tokenizer")
    if teacher_domain is not None and not teacher:
        raise ConfigError("--teacher-domain is the domain of a teacher: add --teacher, or leave it out")
    if checked.load == "sequential":
        raise ConfigError(f"{config}: a server keeps both models in memory: set load to together")
    # The port opens before anything is loaded, so that clients connect and wait: OpenRLHF's client gives a closed port
    # five seconds.
    bound = listen(host, port)
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.serve.app import create_app
    from gdr_plugin.store.optional import OptionalStore

    plugins = ctx.obj.plugins()
    try:
        ratio = GuidedDensityRatio.from_config(checked, plugins=plugins, open_store=OptionalStore)
        taught = None
        if teacher and policy_tokenizer is not None:
            from gdr_plugin.reward.teacher import Teacher

            taught = Teacher.from_ratio(
                ratio, policy_tokenizer, plugins=plugins, scale=scale, clip=clip, domain=teacher_domain
            )
        service = BatchingService(ratio, settings, teacher=taught)
        served = create_app(service, plugins)
    except BaseException:
        bound.close()
        raise
    if not is_loopback(host) and settings.token is None:
        print(f"gdr: warning: {host} is reachable from elsewhere and there is no --token", file=sys.stderr)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{bound.getsockname()[1]}"

    def announce() -> None:
        print(line_of(f"gdr: serving {config} on {url} (routes: {url}/docs)"), flush=True)
        if taught is not None:
            facts = taught.describe()
            print(f"gdr: teacher: {facts['values']}; {facts['domain']}: guidance {facts['guidance']}", flush=True)

    raise typer.Exit(run(served, service, bound, on_ready=announce, access_log=access_log))
