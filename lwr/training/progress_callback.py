"""Report the progress of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from transformers import TrainerCallback

from lwr.common.exits import exit_name
from lwr.common.progress import Progress, format_duration
from lwr.config.training import Loss


class ProgressCallback(TrainerCallback):
    """The steps of a training, counted, and a line on stderr for each log and each dev evaluation."""

    def __init__(
        self,
        progress: Progress,
        exits: Sequence[int],
        group_size: int,
        loss: Loss = "contrastive",
        measure: str = "nDCG@10",
    ):
        """Set what the lines show: steps, the layers with a head, the loss with its value at chance, the measure."""
        self.progress, self.exits, self.loss, self.measure = progress, exits, loss, measure
        chance = {
            "ranknet": math.log(2),
            "contrastive": math.log(group_size),
            "listnet": math.log(group_size),
        }
        self.chance = f" (chance {chance[loss]:.2f})" if loss in chance else ""

    def on_train_begin(self, args, state, control, **_):
        """Start the clock; a training that was interrupted has steps already."""
        self.start, self.first_step = time.monotonic(), state.global_step
        self.progress.resume(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, **_):
        """Count the step."""
        self.progress.advance()

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

    def _by_layer(self, logs: dict[str, float], prefix: str) -> str:
        return " ".join(f"{layer}:{logs[f'{prefix}_{exit_name(layer)}']:.3f}" for layer in self.exits)

    def _print(self, state, text: str) -> None:
        self.progress.log(f"{self.progress.label}: step {state.global_step}/{state.max_steps}, {text}")
