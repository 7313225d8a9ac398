"""Weighted and long prompts: read as webuis read them, embedded by a direct computation, and plain ones left alone."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.generation.generate import load_models, paint
from controlkit.generation.plan import make_plan
from controlkit.generation.prompt_chunks import MOST_TOKENS, chunks
from controlkit.generation.prompt_syntax import Prompt, escaped
from controlkit.generation.prompts import prompt_arguments, weighed
from controlkit.generation.request import Request
from controlkit.generation.settings import read_settings
from controlkit.generation.tasks import pipeline_of
from controlkit.models.bases import find_base
from controlkit.models.formats.embeddings import find_embeddings
from tests.conftest import draw_photo
from tests.painting import pixels, reference

SIZE = {"width": 48, "height": 32}
ASKED = ["--size", "48x32", "--seed", 1, "--steps", 2]
LONG = "a red ball, " * 8 + "(blue:1.4) sky"  # the random bases have a token a letter


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


def one():
    return torch.Generator().manual_seed(1)


def read(text):
    return [[(piece.text, round(piece.weight, 4)) for piece in part] for part in Prompt.parse(text).parts]


# What is read


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red ball", [("a red ball", 1)]),
        ("a (red) ball", [("a ", 1), ("red", 1.1), (" ball", 1)]),
        ("((red)), [ball]", [("red", 1.21), (", ", 1), ("ball", 0.9091)]),
        ("(a (red:1.5) ball:0.8)", [("a ", 0.8), ("red", 1.2), (" ball", 0.8)]),
        ("(red: -.5 ) x", [("red", -0.5), (" x", 1)]),
        ("([red])", [("red", 1)]),
        (r"a \(red\) \[x\] \\", [(r"a (red) [x] " + "\\", 1)]),
        ("red: 1, 16:9", [("red: 1, 16:9", 1)]),
        ("16:9) ]x", [("16:9) ]x", 1)]),
        ("a (red, ball", [("a ", 1), ("red, ball", 1.1)]),
        ("a [red", [("a ", 1), ("red", 0.9091)]),
        ("(grün\nblau:2)", [("grün\nblau", 2)]),
        ("", []),
    ],
)
def test_brackets_weigh(text, pieces):
    assert read(text) == [pieces]


def test_break_parts_a_prompt():
    assert read("a BREAK b") == [[("a", 1)], [("b", 1)]]
    assert read("(a\nBREAK b:1.2)") == [[("a", 1.2)], [("b", 1.2)]]
    assert read("BREAK a BREAK BREAK b BREAK ") == [[], [("a", 1)], [], [("b", 1)]]
    assert read("BREAKFAST, break") == [[("BREAKFAST, break", 1)]]


def test_what_is_escaped_is_read_as_it_was():
    text = r"a (red:1.3) \ [ball] ((x"
    assert Prompt.parse(escaped(text)) == Prompt.literal(text)
    assert not Prompt.parse(text).plain


@pytest.mark.parametrize("text", ["a [red|blue] ball", "[red:blue:0.5]", "x [(red):0.5]"])
def test_prompts_that_change_are_refused(text):
    with pytest.raises(RequestError, match="changes between the steps"):
        Prompt.parse(text)


# Chunks


@pytest.fixture(scope="module")
def tokenizer():
    """75 tokens a chunk, a letter each."""
    return find_base("random-sd15").load("tokenizer")


def texts_of(tokenizer, prompt, embeddings=()):
    made = chunks(tokenizer, prompt, list(embeddings))
    for chunk in made:
        assert len(chunk.ids) == len(chunk.weights) == len(chunk.mask) == 77
        assert (chunk.ids[0], chunk.ids[sum(chunk.mask) - 1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert set(chunk.ids[sum(chunk.mask) :]) <= {tokenizer.pad_token_id}
    return [tokenizer.convert_ids_to_tokens(chunk.ids[1 : sum(chunk.mask) - 1]) for chunk in made]


def test_what_fits_is_what_the_tokenizer_makes_of_it(tokenizer):
    tokenizer.pad_token = "!"  # as SD 2.x and SDXL's second have it
    for text in ("", "a red ball", "x" * 75):
        expected = tokenizer(text, padding="max_length", max_length=77)
        (chunk,) = chunks(tokenizer, Prompt.literal(text), [])
        assert (chunk.ids, chunk.mask) == (expected.input_ids, expected.attention_mask)
    tokenizer.pad_token = tokenizer.eos_token


def test_a_chunk_ends_at_75_or_behind_the_last_comma_near_it(tokenizer):
    def lengths(text):
        return [len(chunk) for chunk in texts_of(tokenizer, Prompt.literal(text))]

    assert lengths("x" * 160) == [75, 75, 10]
    assert lengths("x" * 59 + "," + "y" * 40) == [60, 40]
    assert lengths("x" * 54 + "," + "y" * 40) == [75, 20]  # 20 tokens back is too far
    assert lengths("x" * 60 + "," + "y" * 14 + "," + "z" * 5) == [75, 6]  # the phrase is whole


def test_break_begins_a_chunk_and_weights_follow_their_tokens(tokenizer):
    prompt = Prompt.parse("ab (cd:1.5) BREAK [e]")
    assert texts_of(tokenizer, prompt) == [["a", "b</w>", "c", "d</w>"], ["e</w>"]]
    first, second = chunks(tokenizer, prompt, [])
    assert first.weights == [1, 1, 1, 1.5, 1.5, *[1] * 72]
    assert second.weights == pytest.approx([1, 1 / 1.1, *[1] * 75])


def test_an_embedding_is_not_parted(tokenizer, tmp_path):
    base = find_base("random-sd15")
    save_file({"emb_params": torch.ones(6, 32)}, tmp_path / "thing.safetensors")
    found = find_embeddings(base, (tmp_path / "thing.safetensors",))
    own = base.load("tokenizer")
    own.add_tokens(found[0].tokens(0))
    first, second = texts_of(own, Prompt.parse("x" * 72 + " (Thing:1.2) y"), found)
    assert len(first) == 72
    assert second == [*found[0].tokens(0), "y</w>"]


# Embeddings


def test_a_weight_multiplies_and_the_mean_comes_back():
    hidden = torch.randn(1, 4, 6, generator=one()) + 0.5
    made = weighed(hidden, [1, 1.5, 1, 0])
    expected = hidden * torch.tensor([1, 1.5, 1, 0])[:, None]
    ratio = made[:, :3] / expected[:, :3]
    assert torch.allclose(ratio, ratio[0, 0, 0].expand_as(ratio))
    assert torch.allclose(made.mean(), hidden.mean())
    assert not made[0, 3].any()
    assert torch.equal(weighed(hidden, [1.0] * 4), hidden)


def test_a_mean_of_rounding_is_not_restored():
    """As behind a layer norm without bias: its ratio would be any number."""
    hidden = torch.nn.functional.layer_norm(torch.randn(1, 77, 64, generator=one()), (64,))
    weights = [1.0, 1.5, *[1.0] * 75]
    assert torch.equal(weighed(hidden, weights), hidden * torch.tensor(weights)[:, None])


def by_hand(base_name, texts, weights, skip=0):
    """Chunks of text, weights of their tokens (those not said: 1) -> what a direct computation makes of them."""
    base = find_base(base_name)
    columns, pooled = [], None
    for suffix in base.text_parts():
        tokenizer, encoder = base.load(f"tokenizer{suffix}"), base.load(f"text_encoder{suffix}")
        row = []
        for number, text in enumerate(texts):
            ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            with torch.no_grad():
                output = encoder(ids, output_hidden_states=True)
                if base.is_xl:
                    hidden = output.hidden_states[-2 - skip]
                else:
                    norm = next(each for name, each in encoder.named_modules() if name.endswith("final_layer_norm"))
                    hidden = norm(output.hidden_states[-1 - skip])
            pooled = output[0] if number == 0 else pooled
            factors = torch.ones(77)
            for place, weight in weights.get(number, {}).items():
                factors[place] = weight
            stronger = hidden * factors[:, None]
            scale = hidden.mean() / stronger.mean() if base.is_xl and number in weights else 1
            row.append(stronger * scale)
        columns.append(torch.cat(row, dim=1))
    return torch.cat(columns, dim=2), pooled


# LONG as it is read: 71 tokens to its last comma near the 75th, and the rest.
CHUNKS = ["a red ball," * 7 + " a red ball,", "blue sky"]
"""In two chunks."""


def given_to(request):
    """The models of a request, and what its pipeline is called with for its prompts."""
    plan = make_plan(request, lambda text: None)
    models = load_models(plan, device="cpu", dtype=torch.float32)
    return plan, models, prompt_arguments(plan, pipeline_of(plan, models.parts, models.nets))


@pytest.mark.parametrize(("base", "skip"), [("random-sd15", 0), ("random-sd21", 1), ("random-sdxl", 1)])
def test_embeddings_are_those_of_a_direct_computation(base, skip):
    """A long weighted prompt and a short negative one, which is filled up with an empty chunk and skips no layer."""
    _, _, given = given_to(Request(base=base, prompt=LONG, negative="(blurry:0.5)", clip_skip=skip + 1))
    embeds, pooled = by_hand(base, CHUNKS, {1: dict.fromkeys(range(1, 5), 1.4)}, skip)
    against, pooled_against = by_hand(base, ["blurry", ""], {0: dict.fromkeys(range(1, 7), 0.5)})
    expected = {"prompt_embeds": embeds, "negative_prompt_embeds": against}
    if base == "random-sdxl":
        expected |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled_against}
    assert set(given) == set(expected)
    assert given["prompt_embeds"].shape[1] == 2 * 77
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, msg=name)


def test_every_task_is_called_with_them(nets, edge, tmp_path):
    """diffusers' own pipeline with the same embeddings, alone and in a batch, and a masked picture again."""
    Image.fromarray(draw_photo(3, 96, 64)).save(tmp_path / "picture.png")
    common = {"base": "random-sd15", "prompt": LONG, "seed": 1, "steps": 2}
    plan, models, given = given_to(Request(**common, size=(48, 32), num=2, batch_size=2))
    together = list(paint(plan, models))
    made = reference("random-sd15", generator=one(), num_inference_steps=2, guidance_scale=7.5, **SIZE, **given)
    (alone,) = paint(make_plan(Request(**common, size=(48, 32)), lambda text: None), models)
    assert np.array_equal(alone.image, made)
    assert np.abs(together[0].image.astype(int) - made).max() <= 1
    generate("--base", "random-sd15", "--prompt", LONG, "--image", tmp_path / "picture.png", "--strength", 0.9,
             "--control", edge, "--controlnet", nets["random-sd15"], "--seed", 1, "--steps", 3,
             "--out", tmp_path / "o.png")  # fmt: skip
    made = reference("random-sd15", [nets["random-sd15"]], [edge], picture=tmp_path / "picture.png", strength=0.9,
                     generator=one(), guidance_scale=7.5, controlnet_conditioning_scale=1.0, **given)  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "o.png"), made)


def test_what_is_not_weighted_is_left_to_diffusers():
    for text, words in [(r"a \(red\) ball", "a (red) ball"), ("([a red ball])", "a red ball")]:
        _, _, given = given_to(Request(base="random-sd15", prompt=text))
        assert given == {"prompt": words, "negative_prompt": None}


def test_a_plain_prompt_is_text_and_replayed_as_such(tmp_path):
    """Webuis read its brackets escaped."""
    text = "a (red:1.3) ball"
    for name, more in [("plain", ["--plain-prompt"]), ("weighted", [])]:
        out = tmp_path / f"{name}.png"
        generate("--base", "random-sd15", *ASKED, "--prompt", text, *more, "--out", out)
        assert read_settings(out)["prompt"] == text
        with Image.open(out) as image:
            assert image.text["parameters"].split("\n")[0] == (escaped(text) if more else text)
    assert not np.array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "weighted.png"))
    generate("--replay", tmp_path / "plain.png", "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


# Bad input


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("word " * 10_000, f"prompt: 10000 words; expected at most {MOST_TOKENS} tokens, shorten it"),
        ("x" * (MOST_TOKENS + 1), f"prompt: {MOST_TOKENS + 1} tokens; expected at most {MOST_TOKENS}, shorten it"),
        ("a [red|blue] ball", "a prompt that changes between the steps, [a|b] or [a:b:0.5], is not read here"),
        ("a ball <lora:thing:0.8>", "<lora:thing:0.8> in a prompt loads nothing; name the file: --lora FILE@0.8"),
    ],
)
def test_what_cannot_be_read_is_one_line(prompt, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--prompt", prompt, "--seed", 1, "--out", tmp_path / "o.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ten_thousand_words_are_refused_at_once():
    begun = time.perf_counter()
    with pytest.raises(RequestError, match="negative: 10000 words"):
        Request(prompt="x", negative="word " * 10_000)
    assert time.perf_counter() - begun < 0.1


def test_a_long_prompt_is_said():
    said = []
    make_plan(Request(base="random-sd15", prompt=LONG, negative="BREAK x"), said.append)
    assert said == ["prompt: 79 tokens are read in 2 chunks", "negative: 1 tokens are read in 2 chunks"]
