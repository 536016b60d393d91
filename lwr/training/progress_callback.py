"""Report the progress of a training."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm
from transformers import TrainerCallback

from lwr.common.exits import exit_name
from lwr.common.progress import format_duration
from lwr.config.training import Loss


class ProgressCallback(TrainerCallback):
    """A bar in a terminal, and a line on stderr for each log and each dev evaluation."""

    def __init__(
        self,
        label: str,
        exits: Sequence[int],
        group_size: int,
        loss: Loss = "contrastive",
        measure: str = "nDCG@10",
    ):
        """Set what the lines show: a label, the layers with a head, the loss with its value at chance, the measure."""
        self.label, self.exits, self.loss, self.measure = label, exits, loss, measure
        chance = {
            "ranknet": math.log(2),
            "contrastive": math.log(group_size),
            "listnet": math.log(group_size),
        }
        self.chance = f" (chance {chance[loss]:.2f})" if loss in chance else ""

    def on_train_begin(self, args, state, control, **_):
        """Start the clock and show the bar, on the main process."""
        self.start, self.first_step = time.monotonic(), state.global_step
        hidden = not (sys.stderr.isatty() and state.is_world_process_zero)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, disable=hidden)

    def on_step_end(self, args, state, control, **_):
        """Advance the bar."""
        self.bar.update()

    def on_log(self, args, state, control, logs, **_):
        """Print a line for the losses or for a dev evaluation, on the main process."""
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            seconds = time.monotonic() - self.start
            seconds_per_step = seconds / max(state.global_step - self.first_step, 1)
            remaining = seconds_per_step * (state.max_steps - state.global_step)
            self._print(
                state,
                f"loss by layer {self._by_layer(logs, self.loss)}{self.chance}, "
                f"{logs['tokens_per_second']:,.0f} tokens/s, {logs['mfu']:.0%} of what matrix products reach, "
                f"{format_duration(seconds)} passed, {format_duration(remaining)} left",
            )
        if "eval_mean" in logs:
            self._print(state, f"dev {self.measure} by layer {self._by_layer(logs, 'eval')}")

    def on_train_end(self, args, state, control, **_):
        """Close the bar."""
        self.bar.close()

    def _by_layer(self, logs: dict[str, float], prefix: str) -> str:
        return " ".join(f"{layer}:{logs[f'{prefix}_{exit_name(layer)}']:.3f}" for layer in self.exits)

    def _print(self, state, text: str) -> None:
        tqdm.write(f"{self.label}: step {state.global_step}/{state.max_steps}, {text}", file=sys.stderr)
