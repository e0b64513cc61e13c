"""The converter's process: ``python -P -m quantkit.checkpoint.converter.child READ WRITE SETUP``.

It answers requests until the pipe is closed (see `process` for what is asked). Nothing of what the
converter prints reaches the user, it reaches no network, starts no program, writes no file but the
header that is asked for, and runs no code that came with a model: `confined` sees to that, from the
moment that everything is imported.
"""

import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.confined import RefusedError, confine, mark_foreign, remove


def main() -> None:
    """Answer until nobody asks any more; then remove the folders that were asked about.

    Who asked removes them as well, but not once it was killed.
    """
    receive, send, setup = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    folders = {setup["folder"]} if setup["folder"] else set()
    try:
        _answer_all(Channel(receive, send), setup, folders)
    finally:
        for folder in folders:
            remove(folder)


def _answer_all(channel: Channel, setup: dict[str, Any], folders: set[str]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (setup["memory"], setup["memory"]))
    # The converter's own gguf and the packages that it was written for go before all others.
    sys.path[:0] = [setup["tree"], f"{setup['tree']}/gguf-py", setup["packages"]]
    # Where transformers finds this, it takes it for the tokenizers of Mistral's models.
    sys.modules["mistral_common"] = None  # type: ignore[assignment]
    try:
        from quantkit.checkpoint.converter.capture import Described, describe
        from quantkit.checkpoint.converter.library import forbid_code, tell

        forbid_code()
        confine()
    except Exception as error:  # noqa: BLE001 - told to the parent
        channel.send({"failed": _said(error), "importing": True})
        return
    described: Described | None = None
    while True:
        try:
            request, _ = channel.receive()
        except EOFError:
            return
        try:
            if "folder" in request:
                folders.add(str(Path(request["folder"]).parent))
            if request["ask"] == "describe":
                described = None
                described, answer = describe(request, channel)
                channel.send(answer)
            elif request["ask"] == "tokenizer":
                mark_foreign(request["folder"])
                channel.send(tell(Path(request["folder"]), whole=request["whole"]))
            elif described is None:
                channel.send({"failed": "nothing is described"})
            elif request["ask"] == "needs":
                channel.send({"needs": described.needs(request["units"])})
            else:
                rows = described.rows(request["target"], request["row"], request["rows"])
                channel.send({"rows": True}, rows)
        except RefusedError as refusal:
            channel.send({"refused": str(refusal)})
        except BrokenPipeError:
            return
        except MemoryError:
            channel.send({"failed": f"more than {setup['memory'] >> 20} MiB of memory"})
        except Exception as error:  # noqa: BLE001 - whatever somebody else's code raises is told
            channel.send({"failed": _said(error), "is_of_the_form": _is_of_the_form(error)})


def _said(error: BaseException) -> str:
    """What failed: its kind, its first line, and where in the converter it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = _frames_in_converter(error)
    if frames and not lines and isinstance(error, AssertionError):
        lines = [frames[-1].line or ""]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    places = [f"{Path(frame.filename).name}, line {frame.lineno}" for frame in frames]
    return f"{text} in {places[-1]}" if places else text


def _is_of_the_form(error: BaseException) -> bool:
    """Whether the converter does not read weights that are stored so, rather than this checkpoint.

    ``ModelBase.dequant_model`` asserts what it did not meet yet.
    """
    is_assertion = isinstance(error, AssertionError)
    names = (frame.name for frame in _frames_in_converter(error))
    return isinstance(error, NotImplementedError) or (is_assertion and "dequant_model" in names)


def _frames_in_converter(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if Path(frame.filename).parent.name == "conversion"]


if __name__ == "__main__":
    main()
