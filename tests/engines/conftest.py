"""vLLM engines, started once for each model."""

import pytest


@pytest.fixture(scope="session")
def start_vllm(tmp_path_factory):
    """A function: the vLLM engine with a model's weights, whose scorer is the model itself."""
    from stages.engines.transformers_engine import TransformersEngine
    from stages.engines.vllm_engine import VllmEngine
    from stages.model.loading import load_codec
    from stages.sections import ModelSection, VllmSection

    started = {}

    def start(vlm, **settings):
        key = id(vlm), *settings.items()
        if key not in started:
            folder = tmp_path_factory.mktemp("served")
            vlm.save(folder)
            section = VllmSection(**settings)
            codec = load_codec(folder)
            engine = VllmEngine(folder, codec, ModelSection(dtype="float32"), section, lambda: TransformersEngine(vlm))
            started[key] = vlm, engine  # the model is kept, or its id might be another's
        return started[key][1]

    return start
