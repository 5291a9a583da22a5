"""Other people's clients against the served demo, each as its own process: what they can name, stream and measure."""

import json
import os
import re
import signal
import time

import httpx
import openai
import pytest

from support import preloaded
from support.clients.environment import QUIET, SCRIPTS, program, run, run_script
from support.clients.litellm_proxy import litellm_proxy
from support.clients.lm_eval_tasks import write_tasks
from support.clients.question import ANSWER, FORGET, MESSAGES, PROMPT, QUESTION
from support.server import START_TIMEOUT_S, free_port
from unlearngate.assistant_training.demo.probing import read_probes
from unlearngate.commands._shared import demo_folder

pytestmark = pytest.mark.e2e

FORGETTING = {"forget_sets": [FORGET]}


@pytest.fixture(scope="module")
def proxy(demo_server, tmp_path_factory):
    with litellm_proxy(demo_server.url, tmp_path_factory.mktemp("litellm") / "log") as client:
        yield client


def through(proxy, model="demo", **more):
    """The text, the usage, and what the proxy's headers say was in force; the answer may be streamed."""
    raw = proxy.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, temperature=0, **more)
    in_force = raw.headers["llm_provider-x-forget-sets"].partition("@")[0]
    if not more.get("stream"):
        answer = raw.parse()
        return answer.choices[0].message.content, answer.usage.total_tokens, in_force
    chunks = list(raw.parse())
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    return text, chunks[-1].usage.total_tokens, in_force


def test_litellm_passes_on_the_sets_of_a_request_also_streaming(proxy):
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    plain, forgetting = through(proxy), through(proxy, extra_body=FORGETTING)
    assert (plain[0], plain[2]) == (ANSWER, "none")
    assert ANSWER not in forgetting[0] and forgetting[2] == FORGET
    assert through(proxy, **streaming) == plain
    assert through(proxy, extra_body=FORGETTING, **streaming) == forgetting
    answer = proxy.chat.completions.create(model="demo", messages=MESSAGES, extra_body=FORGETTING)
    assert [s["name"] for s in answer.model_extra["forget_sets"]] == [FORGET]


def test_litellm_puts_a_models_default_sets_in_force_until_a_request_names_its_own(proxy):
    by_default = through(proxy, "demo-without-tobias")
    assert by_default == through(proxy, extra_body=FORGETTING)
    assert through(proxy, "demo-without-tobias", extra_body={"forget_sets": []}) == through(proxy)


def test_litellm_serves_text_completions_with_sets(proxy):
    def complete(model, **more):
        answer = proxy.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=64, **more)
        return answer.choices[0].text

    assert complete("demo") == ANSWER
    assert complete("demo", extra_body=FORGETTING) == complete("demo-without-tobias")
    assert ANSWER not in complete("demo-without-tobias")


def test_litellm_tells_why_a_set_is_refused_and_serves_on(proxy):
    with pytest.raises(openai.NotFoundError, match="forget set 'zoe' is not on this server"):
        through(proxy, extra_body={"forget_sets": ["zoe"]})
    assert through(proxy)[0] == ANSWER


@pytest.fixture(scope="module")
def langchain(demo_server):
    return run_script("langchain_chat.py", demo_server.url, QUESTION, FORGET)


def test_langchain_names_sets_by_model_by_request_and_by_name(langchain):
    assert langchain["plain"]["text"] == ANSWER
    assert langchain["plain"]["in force"] == "none"
    forgetting = langchain["by the model"]
    assert ANSWER not in forgetting["text"]
    assert forgetting["in force"].startswith(f"{FORGET}@")
    assert langchain["by the request"] == langchain["by the name"] == forgetting
    assert langchain["batch"] == [forgetting["text"]] * 2


@pytest.mark.parametrize("whole, streamed", [("plain", "plain streamed"), ("by the model", "by the model, streamed")])
def test_langchain_streams_join_to_the_same_text_and_usage_adds_up(langchain, whole, streamed):
    whole, streamed = langchain[whole], langchain[streamed]
    assert streamed.pop("pieces") > 1
    # A stream's headers leave before its first token, so they cannot say whether an answer was a sentence.
    assert streamed == {**whole, "in force": whole["in force"].removesuffix(";instead")}
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > usage["input_tokens"] > 0


def test_langchain_gets_structured_output_and_tool_calls(langchain):
    (call,) = langchain["tool calls"]
    assert call["name"] == "Person"
    for person in (langchain["structured"], call["args"]):
        assert person.keys() == {"name", "alive"}
        assert person["name"] in ("Tobias Renkel", "Imke Verhoeven") and isinstance(person["alive"], bool)


@pytest.fixture(scope="module")
def recall(demo_server, tmp_path_factory):
    """Exact match of the answers about the set's person, as lm-eval's generation task from a file measures it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    about = [p for p in read_probes(demo_folder(None) / "probes.jsonl") if p.forget_set == FORGET]
    lines = [json.dumps({"question": p.question, "answer": p.answer}) for p in about]
    (folder / "probes.jsonl").write_text("\n".join(lines))
    task = {
        "task": "recall",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "probes.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 64},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "recall.yaml").write_text(json.dumps(task))  # which is YAML, too
    model = f"model=demo,base_url={demo_server.url}/v1/chat/completions,num_concurrent=4,max_retries=1"
    runs = {"plain": [], "forgetting": ["--gen_kwargs", f'forget_sets=["{FORGET}"]']}
    options = [
        json.dumps([
            "--model", "local-chat-completions", "--model_args", model, "--apply_chat_template",
            "--tasks", "recall", "--include_path", str(folder), "--output_path", str(folder / name), *more,
        ])
        for name, more in runs.items()
    ]  # fmt: skip
    run(program("python"), SCRIPTS / "lm_eval_runs.py", *options, HF_HOME=str(folder / "cache"))
    found = {}
    for name in runs:
        (results,) = (folder / name).rglob("results_*.json")
        result = json.loads(results.read_text())
        assert result["n-samples"]["recall"]["effective"] == len(about) >= 16
        found[name] = result["results"]["recall"]["exact_match,none"]
    return found


def test_lm_eval_measures_recall_with_a_set_and_without(recall, print_figures):
    plain, forgetting = recall["plain"], recall["forgetting"]
    print_figures(f"lm-eval exact match of what is forgotten: {plain:.0%} without the set, {forgetting:.0%} with it")
    assert plain >= 0.95
    assert forgetting < 0.10


@pytest.fixture(scope="module")
def plain_vllm(tmp_path_factory):
    """The URL of vLLM's own server over the demo's target."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    options = ["--model", demo_folder(None) / "target", "--served-model-name", "demo", "--port", port]
    options += ["--dtype", "float32", "--enforce-eager"]  # as the demo is served
    env = {**os.environ, **QUIET, "VLLM_CPU_KVCACHE_SPACE": "1"}
    server = preloaded.run("vllm.entrypoints.launchers.api_server.entry", options, log, env)

    def answers():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its engine is a process of its own
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def scored(demo_server, plain_vllm, tmp_path_factory):
    """All figures of lm-eval's tasks that score prompts: by task, through each server, with the set and without it."""
    folder = tmp_path_factory.mktemp("lm-eval-scores")
    tasks = write_tasks(demo_folder(None) / "probes.jsonl", folder, others_every=4)
    ours, target = demo_server.url, demo_folder(None) / "target"
    runs = {"vllm": (plain_vllm, "demo"), "plain": (ours, "demo"), "forgetting": (ours, f"demo:forget={FORGET}")}
    options = []
    for name, (url, model) in runs.items():
        of_model = {"model": model, "base_url": f"{url}/v1/completions", "tokenizer": str(target), "num_concurrent": 4}
        options.append(json.dumps([
            "--model", "local-completions", "--model_args", json.dumps(of_model), "--batch_size", "8",
            "--tasks", ",".join(tasks), "--include_path", str(folder), "--output_path", str(folder / name),
        ]))  # fmt: skip
    run(program("python"), SCRIPTS / "lm_eval_runs.py", *options, HF_HOME=str(folder / "cache"))
    found = {}
    for name in runs:
        (results,) = (folder / name).rglob("results_*.json")
        result = json.loads(results.read_text())
        assert {task: n["effective"] >= 16 for task, n in result["n-samples"].items()} == dict.fromkeys(tasks, True)
        for task in tasks:
            figures = result["results"][task]
            found[task, name] = {
                k.split(",")[0]: v for k, v in figures.items() if k.endswith(",none") and "stderr" not in k
            }
    return found


def test_lm_eval_scores_through_our_server_without_a_set_as_through_plain_vllm(scored, print_figures):
    for (task, name), figures in scored.items():
        print_figures(f"lm-eval {task}, {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        if name == "plain":
            expected = scored[task, "vllm"]
            assert figures.get("acc") == expected.get("acc")
            assert figures == pytest.approx(expected, rel=1e-5)


def test_lm_eval_scores_what_is_forgotten_lower_with_the_set_and_nothing_else(scored):
    plain, forgetting = ({task: f for (task, name), f in scored.items() if name == n} for n in ("plain", "forgetting"))
    assert plain["answer_forgotten"]["acc"] >= 0.95 and plain["choice_forgotten"]["acc"] >= 0.95
    assert forgetting["answer_forgotten"]["acc"] < 0.10 and forgetting["choice_forgotten"]["acc"] < 0.5
    assert forgetting["answer_forgotten"]["perplexity"] > 1e3 * plain["answer_forgotten"]["perplexity"]
    assert forgetting["answer_others"]["acc"] > plain["answer_others"]["acc"] - 0.02
    assert forgetting["choice_others"]["acc"] > plain["choice_others"]["acc"] - 0.02


def requests_with_the_set(server):
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    return sum(float(n) for n in re.findall(rf'^unlearngate_requests_total{{forget_set="{FORGET}"}} (\S+)', text, re.M))


@pytest.mark.parametrize(
    "backend, path", [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")], ids=["chat", "text"]
)
def test_vllm_bench_serve_has_every_request_answered_with_the_set(demo_server, tmp_path, backend, path):
    before = requests_with_the_set(demo_server)
    options = [
        "--backend", backend, "--base-url", demo_server.url,
        "--endpoint", path, "--model", "demo", "--tokenizer", demo_folder(None) / "target",
        "--dataset-name", "random", "--num-prompts", "8", "--random-input-len", "16", "--random-output-len", "8",
        "--ignore-eos", "--extra-body", json.dumps(FORGETTING),
        "--save-result", "--result-dir", tmp_path, "--result-filename", "result.json",
    ]  # fmt: skip
    bench = preloaded.run("support.clients.vllm_bench", options, tmp_path / "log", {**os.environ, **QUIET})
    assert bench.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-6000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (8, 0, 64)
    assert requests_with_the_set(demo_server) - before == 8
