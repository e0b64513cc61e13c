"""llama.cpp's own chat templates: a small program against the library of the vendored tools."""

import atexit
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.native_tools import BIN, BUILD

_PROGRAM = r"""
#include "chat.h"
#include "json.h"
#include "log.h"
#include <iostream>
#include <iterator>

int main() {
    common_log_set_verbosity_thold(-1);
    std::string in((std::istreambuf_iterator<char>(std::cin)), {});
    auto request = common_json::parse(in);
    auto answers = common_json::array();
    for (const auto & job : request) {
        common_json answer = common_json::object();
        try {
            auto templates = common_chat_templates_init(
                nullptr, job.at("template").get<std::string>(),
                job.at("bos").get<std::string>(), job.at("eos").get<std::string>());
            common_chat_templates_inputs inputs;
            inputs.force_pure_content = job.at("pure").get<bool>();
            inputs.messages = common_chat_msgs_parse_oaicompat(job.at("messages"));
            if (job.contains("tools")) {
                inputs.tools = common_chat_tools_parse_oaicompat(job.at("tools"));
            }
            inputs.add_generation_prompt = job.at("add_generation_prompt").get<bool>();
            answer["text"] = common_chat_templates_apply(templates.get(), inputs).prompt;
        } catch (const std::exception & error) {
            answer["refusal"] = std::string(error.what());
        }
        answers.push_back(answer);
    }
    std::cout << answers.dump() << std::endl;
}
"""


def rendered(
    template: str,
    tokens: Mapping[str, str],
    chats: Sequence[Mapping[str, Any]],
    *,
    pure: bool = True,
) -> list[dict[str, str]]:
    """What ``common_chat_templates_apply`` gives for each conversation: a text or a refusal.

    ``pure`` leaves out the parser of answers that llama.cpp makes for a template, and the changes
    for families that it knows by marks in their templates.
    """
    jobs = [
        {
            "template": template,
            "bos": tokens.get("bos_token", ""),
            "eos": tokens.get("eos_token", ""),
            "pure": pure,
            **{key: value for key, value in chat.items() if value is not None},
        }
        for chat in chats
    ]
    done = subprocess.run(
        [_program()], input=json.dumps(jobs), capture_output=True, text=True, check=True
    )
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers


@cache
def _program() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="chat-engine"))
    atexit.register(shutil.rmtree, folder)
    source, program = BUILD / "llama.cpp", folder / "engine"
    headers = [f"-I{source / part}" for part in ("common", "include", "ggml/include", "vendor")]
    libraries = ["-lllama-common", "-lllama", "-lggml", "-lggml-base"]
    compile_ = [
        "c++", "-std=c++17", "-O0", "-x", "c++", "-", "-o", str(program), *headers,
        f"-L{BIN}", f"-Wl,-rpath,{BIN}", "-Wl,-rpath-link," + str(BIN), *libraries,
    ]  # fmt: skip
    subprocess.run(compile_, input=_PROGRAM, text=True, check=True)
    return program
