"""The process of a ``quantkit`` command, which Ctrl-C may end at any moment without a traceback."""

import gc
import signal
import sys

# Objects that are made before Python looks for cycles among them, instead of 700: while modules are
# imported and plans are made, of which none is garbage, looking took a sixth of `fit`'s time.
_OBJECTS_BETWEEN_COLLECTIONS = 200_000


def main() -> None:
    """Run the command line; exit 0, or 1, 2 or 130 after one sentence on stderr.

    Ctrl-C ends the process at once while it is being loaded, stops the command while that runs,
    and comes too late once it is over, when exit handlers have something to put away. SIGTERM stops
    a command as Ctrl-C does. A signal that was ignored when the process began, as shells do with
    SIGINT for what they start in the background, stays ignored.
    """
    signals = {s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN}
    _handle(signals, signal.SIG_DFL)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    from quantkit.cli.app import run

    try:
        try:
            _handle(signals, signal.default_int_handler)
            run()
        finally:
            _handle(signals & {signal.SIGINT}, signal.SIG_IGN)
            _handle(signals & {signal.SIGTERM}, signal.SIG_DFL)
    except KeyboardInterrupt:  # between the command and the line above
        sys.exit(130)


def _handle(signals: set[signal.Signals], handler: "signal._HANDLER") -> None:
    for number in signals:
        signal.signal(number, handler)
