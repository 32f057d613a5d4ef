"""What vLLM's workers can do besides their own; they import it by name, in whatever process they run."""

from __future__ import annotations

from typing import Any


class TakesWeights:
    """Mixed into vLLM's worker class."""

    reload_weights: Any
    model_runner: Any

    def take_weights(self, folder: str) -> None:
        """Put a checkpoint's weights into the running model."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                # On a CPU the head computes with a packed copy, which is not renewed where the weights are the
                # embedding's.
                layer.quant_method.process_weights_after_loading(layer)
