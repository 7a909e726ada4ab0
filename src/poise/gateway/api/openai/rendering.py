"""How a chat's prompt is to be written: what a caller may say to the model's chat template, and where the answer begins."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poise.gateway.api.fields import Custom, Field, Flag, read_object
from poise.gateway.request.refusals import invalid_value, shown
from poise.wire.text import Message, Rendering

VARIABLES_MAX, VARIABLES_CHARS_MAX, DEPTH_MAX = 32, 16_384, 8
_TAKEN = {
    "messages": "they are the request's",
    "tools": "they are the request's",
    "documents": "put them into the messages",
    "bos_token": "it is the model's",
    "eos_token": "it is the model's",
    "add_generation_prompt": "it is a parameter of its own",
    "continue_final_message": "it is a parameter of its own",
}


def _read_variables(value: object, param: str) -> dict[str, Any]:
    variables = read_object(value, param)
    for name in variables:
        if name in _TAKEN or not name.isidentifier():
            hint = _TAKEN.get(name, "it is no name that a template could use")
            raise invalid_value(param, "have names that are free", name, f"has {shown(name)}: {hint}")
    if len(variables) > VARIABLES_MAX:
        raise invalid_value(param, f"have at most {VARIABLES_MAX} entries", None, f"has {len(variables)}")
    if not is_flat(variables, DEPTH_MAX) or len(json.dumps(variables)) > VARIABLES_CHARS_MAX:
        rule = f"be at most {VARIABLES_CHARS_MAX} characters of JSON, nested {DEPTH_MAX} times at most"
        raise invalid_value(param, rule, None, "is larger")
    return variables


def is_flat(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_flat(one, levels - 1) for one in inner)


ADD_GENERATION_PROMPT = Flag(
    "add_generation_prompt", "The prompt ends where the assistant is to speak; true, unless the last message is continued."
)
CONTINUE_FINAL_MESSAGE = Flag(
    "continue_final_message", "The answer goes on with the text of the last message, which is the assistant's."
)
VARIABLES: Field[dict[str, Any]] = Custom(
    "chat_template_kwargs",
    "Values for the model's chat template, such as `enable_thinking`. One that the template does not know has no effect.",
    _read_variables,
    {"type": "object", "maxProperties": VARIABLES_MAX},
)
PREFIX = Flag("prefix", "On the last message, an assistant's: the same as `continue_final_message`.")
FIELDS: tuple[Field[Any], ...] = (ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, VARIABLES)


def read_rendering(values: Mapping[str, Any], messages: Sequence[Message]) -> Rendering:
    """`messages`: those of the request, read."""
    opens_answer = ADD_GENERATION_PROMPT.get(values, None)
    is_named = CONTINUE_FINAL_MESSAGE.get(values, False)
    continues = is_named or PREFIX.get(values["messages"][-1], False)
    if continues and messages[-1].role != "assistant":
        rule = "come with a last message of the assistant"
        param = CONTINUE_FINAL_MESSAGE.name if is_named else f"messages[{len(messages) - 1}].{PREFIX.name}"
        raise invalid_value(param, rule, None, f"continues one of '{messages[-1].role}'")
    if continues and opens_answer:
        raise invalid_value(ADD_GENERATION_PROMPT.name, "be false where the last message is continued", opens_answer)
    return Rendering(opens_answer is not False, continues, VARIABLES.get(values, {}))
