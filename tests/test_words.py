"""Words: patterns, vocabulary, topics and windows against plain loops; vectors against SciPy."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponderlearn import words
from ponderlearn.data import text
from ponderlearn.words import (
    LONG_TOPICS,
    WordVocabulary,
    split_words,
    topic_words,
    window_index,
    word_vectors,
    word_vocabulary,
)


@pytest.fixture(scope="module")
def corpus():
    return topic_words()


def test_examples_in_docstrings():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("[a-z]+", ["it", "s", "x"]),
        ("[a-z]+|[0-9]+|[^a-z0-9 ]", ["it", "'", "s", "x", "12", "!"]),
        ("([a-z])+", ["it", "s", "x"]),
        ("x*", ["x"]),
    ],
)
def test_patterns(pattern, wanted):
    assert split_words("It's X12!", pattern) == wanted


def test_vocabulary():
    v = word_vocabulary(["b", "a", "c", "b", "a", "d"], min_count=1)
    assert v.words == ("a", "b", "c", "d") and v.size == 5
    assert word_vocabulary(["b", "a", "b"], min_count=2).words == ("b",)
    assert v.decode(v.encode(["d", "zebra", "a"])) == ["d", "\ufffd", "a"]
    assert v.encode([]).dtype == torch.int64


def test_topics(corpus):
    topics = text().topics
    assert corpus.names == LONG_TOPICS and len(corpus.ids) == len(corpus.topic)
    seen, wanted = set(), []
    for i, name in enumerate(LONG_TOPICS):
        for paragraph in topics[name].split("\n\n"):
            if paragraph.rstrip() not in seen:
                seen.add(paragraph.rstrip())
                wanted += [(i, word) for word in split_words(paragraph)]
    assert corpus.topic.tolist() == [i for i, _ in wanted]
    known = set(corpus.vocabulary.words)
    decoded = corpus.vocabulary.decode(corpus.ids)
    assert all(
        d == w if w in known else d == "\ufffd" for d, (_, w) in zip(decoded, wanted, strict=True)
    )
    assert corpus.ids.bincount()[1:].min() >= 3
    for i in range(0, len(corpus.ids), 997):
        assert wanted[i][1] in corpus.paragraphs[corpus.paragraph[i]].lower()


def test_fewer_words():
    few = topic_words(["debugger", "types"], min_count=1, n=50)
    assert few.vocabulary.size == 51 and set(few.topic.tolist()) == {0, 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_windows_against_a_loop(groups, length):
    wanted, i = [], 0
    while i < len(groups):
        j = i
        while j < len(groups) and groups[j] == groups[i]:
            j += 1
        while i + length <= j:
            wanted.append(list(range(i, i + length)))
            i += length
        i = j
    if wanted:
        assert window_index(torch.tensor(groups), length).tolist() == wanted
    else:
        with pytest.raises(ValueError, match="length must be at most"):
            window_index(torch.tensor(groups), length)


def test_vectors_against_a_loop():
    import numpy as np

    ids = torch.randint(9, (300,), generator=torch.Generator().manual_seed(0))
    counts = np.zeros((10, 10))
    for i, u in enumerate(ids.tolist()):
        for j in range(max(0, i - 2), min(len(ids), i + 3)):
            if i != j:
                counts[u, ids[j]] += 1
    share = counts / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        m = np.log(share / np.outer(share.sum(0), share.sum(0)))
    m = np.maximum(np.nan_to_num(m, neginf=0), 0)
    u, s, _ = np.linalg.svd(m)
    found = word_vectors(ids, 10, 4, reach=2).double().numpy()
    assert np.allclose(found @ found.T, (u[:, :4] * s[:4]) @ u[:, :4].T, atol=1e-5)
    assert (found[9] == 0).all()


def test_neighbors_are_related(corpus):
    vectors = word_vectors(corpus.ids, corpus.vocabulary.size, 32)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    a, b, c = unit[corpus.vocabulary.encode(["float", "complex", "except"])]
    assert a @ b > a @ c + 0.2


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: split_words("a", "("), ValueError, "pattern must be a regular expression"),
        (lambda: word_vocabulary([]), ValueError, "words must not be empty"),
        (lambda: topic_words(["nothing"]), ValueError, "names must be articles"),
        (lambda: word_vectors(torch.arange(3), 3, 4), ValueError, "size must lie in 1..3"),
        (lambda: word_vectors(torch.arange(3), 3, 2), ValueError, "ids must have more than reach"),
        (lambda: WordVocabulary(("a",)).encode("a"), TypeError, "words must be a list of strings"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
