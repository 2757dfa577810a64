"""The command line: finds the command, turns errors into one sentence and an exit code."""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from codesign import __version__
from codesign.errors import CodesignError, did_you_mean

COMMANDS = {
    "plan": "which scheme for which layer, within budgets",
    "predict": "time, memory, energy and cost of one scheme, or of tables of kernels and servers",
    "compare": "machines against schemes, in one table",
    "profile": "measure the kernels that are here, each checked before it is timed",
    "records": "show, merge, export and import measurements",
    "report": "one page from a run of the profiler: predicted against measured, what paid and what not",
    "validate": "predicted against measured, for a table of kernels or servers",
    "fit": "a kernel sheet of one's own from a table of measured kernels",
    "quantize": "carry a plan or a scheme out on a model's weights and write it for other programs",
    "qat": "fine-tune a model while its layers round, with learned scales, and write it quantized",
    "evaluate": "perplexity of a model on a text, and its KL divergence from a baseline",
    "errors": "how far a scheme puts every layer's weights and outputs from the exact ones",
    "sensitivity": "what each scheme loses in each group of layers, measured on the weights",
    "study": "how much calibration text is enough, which, and which choice of ranges",
    "hw": "list, show, check and copy hardware profiles",
    "model": "list and show models",
    "scheme": "list schemes, and what runs where",
    "size": "which machine, how many, which bits serve a load, and what it costs",
    "sweep": "thousands of machines, models, schemes and workloads predicted into one Parquet file",
    "simulate": "what users of a server see at a rate of requests, and where latency bends",
    "doctor": "what is here to measure with, and what is missing for what",
}
EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_OUTPUT = 2, 130, 143, 1


class LazyCommands(click.Group):
    """Import a command's module only when it is used, so that --help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command named `cmd_name`, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"codesign.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and one line each without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command or fail with the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f'There is no command "{args[0]}".{did_you_mean(args[0], COMMANDS)}', ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: codesign plan --hw a100 --model llama-7b",
)
@click.version_option(__version__, prog_name="codesign")
def command() -> None:
    """Plan the bit-widths of a language model for real hardware."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of its outcome."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(arguments))


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _run(arguments: list[str] | None) -> int:
    try:
        command.main(arguments, prog_name="codesign", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except CodesignError as error:
        from codesign.cli.output import plain

        click.echo(f"Error: {plain(str(error))}", err=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps the interpreter's last flush quiet
        return 0
    except OSError as error:
        click.echo(f"Error: writing the output failed: {error.strerror or error}.", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OUTPUT
    return 0
