"""DSPy."""

from __future__ import annotations

import dspy
from checks import API, KEY, MODEL, SAY_HI, check, run

lm = dspy.LM(f"openai/{MODEL}", api_base=API, api_key=KEY, max_tokens=200, temperature=0.7, cache=False, num_retries=0)


@check("LM, and n answers")
def plain() -> None:
    assert lm(SAY_HI)
    assert len(lm(SAY_HI, n=2)) == 2


@check("Predict with JSONAdapter")
def predict() -> None:
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        assert dspy.Predict("question -> city: str")(question="Name a city.").city is not None


@check("a text model")
def text() -> None:
    completions = f"text-completion-openai/{MODEL}"
    assert dspy.LM(completions, api_base=API, api_key=KEY, model_type="text", max_tokens=8, cache=False)("Oslo is")


run()
