"""The command that serves a library: `serve`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.commands.options import LIBRARY, DeviceMap, Json, LibraryFolder
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError
from softprompt.text import counted

if TYPE_CHECKING:
    from softprompt.prompts.library import PromptLibrary
    from softprompt.serving.engine import Engine
    from softprompt.serving.service import Service


class _Engine(str, Enum):
    LOCAL = "local"
    VLLM = "vllm"


def serve(
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="Hub id, folder or GGUF file. Default: the one of the library's prompts.",
            show_default=False,
        ),
    ] = None,
    folder: LibraryFolder = LIBRARY,
    engine: Annotated[_Engine, typer.Option(help="What computes: the embedded engine, or vLLM.")] = _Engine.LOCAL,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="A key that requests need; give several times for several. Default: SOFTPROMPT_API_KEY, separated by "
            "commas.",
            show_default=False,
        ),
    ] = None,
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="Let other machines in without any key.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Hold the base as torchao-int8, torchao-int4, bnb-8bit or bnb-4bit (local engine). Default: as it is "
            "stored.",
            show_default=False,
        ),
    ] = None,
    device_map: DeviceMap = None,
    state_memory: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Memory for the prompts' kept states (local engine).")
    ] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get a 429.")] = 1024,
    time_limit: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="For each answer.")] = 60.0,
    body_limit: Annotated[int, typer.Option(min=1, metavar="BYTES", help="The largest request.")] = 10_000_000,
    rate_limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Requests a minute for each key, or address.", show_default="none"),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="A name under which to answer without a key, beside localhost, addresses and --host; may come again.",
            show_default=False,
        ),
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A web page's origin, such as https://example.org, that may read answers; may come again.",
            show_default=False,
        ),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name",
            metavar="NAME",
            help="The base's name for clients. Default: its own, or that of its folder or file.",
            show_default=False,
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(metavar="PATH", help="What a proxy puts before every path, such as /llm.", show_default=False),
    ] = "",
    log_probes: Annotated[bool, typer.Option(help="Log requests for /health and /ready too.")] = True,
    playground: Annotated[
        bool | None,
        typer.Option(
            help="A page at / to try the prompts in a browser. Default: where the extra `playground` is installed.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where the playground looks for training runs.")] = Path(
        "runs"
    ),
    flags: Annotated[
        list[str] | None,
        typer.Option(
            "--vllm", metavar="KEY=VALUE", help="A flag of vLLM's: tensor_parallel_size=2.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a library's prompts over HTTP, as OpenAI's API, until Ctrl-C or SIGTERM."""
    if flags and engine is not _Engine.VLLM:
        raise typer.BadParameter("--vllm is for --engine vllm")
    if (quantization or device_map) and engine is _Engine.VLLM:
        raise typer.BadParameter("--quantization and --device-map are for --engine local; vLLM has --vllm KEY=VALUE")
    keys = api_keys or [key.strip() for key in os.environ.get("SOFTPROMPT_API_KEY", "").split(",") if key.strip()]
    with reporting(libraries=True) as out:
        from softprompt.prompts.library import PromptLibrary
        from softprompt.serving.gate import Access
        from softprompt.serving.playground import check_installed, is_installed
        from softprompt.serving.server import Site, serve

        if playground:
            check_installed()
        if not folder.is_dir():
            raise SoftPromptError(
                f"there is no library at {folder}: make one with `softprompt library add NAME PROMPT`"
            )

        name = base or _base_of(PromptLibrary(folder))

        def make_engine() -> Engine:
            settings: dict[str, Any] = {"max_waiting": max_waiting, "time_limit": time_limit}
            if engine is _Engine.VLLM:
                from softprompt.serving.vllm import VllmEngine

                return VllmEngine(name, dtype=dtype, **settings, **_parse_flags(flags or []))
            from softprompt.bases.load import load_base
            from softprompt.serving.local import LocalEngine

            held: dict[str, Any] = {
                "quantization": None if quantization == "none" else quantization,
                "device_map": device_map,
            }
            return LocalEngine(load_base(name, dtype=dtype, **held), state_bytes=state_memory << 20, **settings)

        def tell(url: str, service: Service) -> None:
            refused = service.catalogue.refused
            document = {
                "url": url,
                "base": service.catalogue.base_name,
                "engine": service.engine.name,
                "prompts": [served.id for served in service.catalogue.prompts],
                "refused": refused,
            }
            prompts = counted(len(document["prompts"]), "prompt", "prompts")
            line = f"Serving {document['base']} and {prompts} at {url} (Ctrl-C stops)"
            more = [f"Refused: {name}: {reason}" for name, reason in sorted(refused.items())]
            print_result(out, document if as_json else None, line, *more)

        serve(
            make_engine,
            PromptLibrary(folder),
            Site(
                host=host,
                port=port,
                patience=time_limit,
                allow_no_key=allow_no_key,
                base_name=base_name,
                root_path=root_path,
                runs=runs if playground or (playground is None and is_installed()) else None,
            ),
            ready=tell,
            access=Access(
                api_keys=keys,
                requests_per_minute=rate_limit,
                body_limit=body_limit,
                hosts=[host, *(hosts or [])],
                origins=origins or [],
                log_probes=log_probes,
            ),
        )


def _base_of(library: PromptLibrary) -> str:
    """The base that all prompts of a library name."""
    names = sorted({entry.card.base.name for entry in library.list() if entry.card.base is not None})
    if len(names) != 1:
        found = f"name {len(names)}, {', '.join(names)}" if names else "name none"
        raise SoftPromptError(f"which base is to serve? The prompts of {library.folder} {found}: choose with --base")
    return names[0]


def _parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """vLLM's flags from KEY=VALUE, the values as YAML reads them."""
    import yaml

    found: dict[str, Any] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not (key.isidentifier() and equals):
            raise SoftPromptError(f"--vllm {flag}: write KEY=VALUE, such as tensor_parallel_size=2")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SoftPromptError(f"--vllm {flag}: the value cannot be read") from None
    return found
