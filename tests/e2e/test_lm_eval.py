"""lm-evaluation-harness sees the same model through our server as through transformers: log-likelihoods and perplexity.

It sends token-id prompts with `echo` and `logprobs`, which is how most public benchmark figures are made.
"""

import json

import pytest
import transformers

# Warnings are those of the harness and of what it loads.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

CHOICES = [
    {"q": "The capital of France is", "a": ["Paris", "London", "Madrid"], "gold": 0},
    {"q": "Water freezes at a temperature of", "a": ["zero degrees", "ninety degrees"], "gold": 0},
    {"q": "The opposite of hot is", "a": ["warm", "cold", "red", "tall"], "gold": 1},
    {"q": "Two plus two equals", "a": ["five", "four"], "gold": 1},
    {"q": "A cat is a kind of", "a": ["animal", "machine", "number"], "gold": 0},
]
TEXTS = [
    "A water wheel turns the energy of flowing or falling water into useful power, often in a mill.",
    "The headrace is the channel that brings the water to the wheel; the tailrace takes it away again.",
    "Wheels with buckets are filled from above. The weight of the water in them makes the wheel turn.\n" * 3,
]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory, smollm2_reference, smollm2_source):
    """The reference model and its tokenizer as an ordinary Hugging Face folder."""
    folder = tmp_path_factory.mktemp("hf")
    config = transformers.LlamaConfig(**{**smollm2_reference.config.to_dict(), "quantization_config": None})
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(smollm2_reference.state_dict())
    model.save_pretrained(folder)
    path = smollm2_source.path
    transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two task files over local json: one scores choices, one a whole text."""
    folder = tmp_path_factory.mktemp("tasks")
    choices, texts = folder / "choices.json", folder / "texts.json"
    choices.write_text("\n".join(map(json.dumps, CHOICES)))
    texts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    common = {"dataset_path": "json", "test_split": "train", "metadata": {"version": 1}}
    score = {
        **common,
        "task": "headrace_choices",
        "dataset_kwargs": {"data_files": str(choices)},
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "a",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = {
        **common,
        "task": "headrace_texts",
        "dataset_kwargs": {"data_files": str(texts)},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    for task in (score, rolling):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return folder


def evaluate(model, arguments, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["headrace_choices", "headrace_texts"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


def likelihoods(results):
    """Every log-likelihood of every sample, in order, with whether it was the greedy continuation."""
    return [
        [response[0] if isinstance(response[0], list | tuple) else response for response in sample["resps"]]
        for task in ("headrace_choices", "headrace_texts")
        for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    ]


def test_same_likelihoods_and_perplexity(exact_server, hf_folder, tasks, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    ours = evaluate(
        "local-completions",
        {
            "model": "SmolLM2-135M-Instruct",
            "base_url": f"{exact_server.url}/v1/completions",
            "tokenizer": str(hf_folder),
            "tokenized_requests": True,
            "num_concurrent": 4,
            "max_length": 2048,
        },
        tasks,
    )
    theirs = evaluate(
        "hf", {"pretrained": str(hf_folder), "dtype": "float32", "device": "cpu", "max_length": 2048}, tasks
    )
    assert sum(map(len, likelihoods(ours))) == sum(len(choice["a"]) for choice in CHOICES) + len(TEXTS)
    for our_sample, their_sample in zip(likelihoods(ours), likelihoods(theirs), strict=True):
        for our, their in zip(our_sample, their_sample, strict=True):
            assert float(our[0]) == pytest.approx(float(their[0]), abs=1e-3)
            assert our[1:] == their[1:]
    for task, metric in (
        ("headrace_choices", "acc,none"),
        ("headrace_texts", "word_perplexity,none"),
        ("headrace_texts", "bits_per_byte,none"),
    ):
        assert ours["results"][task][metric] == pytest.approx(theirs["results"][task][metric], rel=1e-3)
    assert ours["results"]["headrace_choices"]["acc,none"] > 0.5
