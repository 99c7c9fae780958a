import torch
from mistakes import Call, free, ok, words

from ponderlearn import words as module

text = lambda: ["a", "b", "a", "c"]
ids = lambda: torch.tensor([0, 1, 2, 1, 0, 2, 1, 1])
vocabulary = lambda: module.WordVocabulary(("a", "b"))

EXAMPLES = {
    "split_words": lambda: Call(
        module.split_words, text=words("Not a test"), pattern=words("[a-z]+")
    ),
    "WordVocabulary.encode": lambda: Call(
        vocabulary().encode, words=ok(text(), "empty", "entry less")
    ),
    "WordVocabulary.decode": lambda: Call(vocabulary().decode, ids=free(torch.tensor([2, 0, 1]))),
    "word_vocabulary": lambda: Call(module.word_vocabulary, words=text(), min_count=2, n=1),
    "topic_words": lambda: Call(
        module.topic_words,
        names=ok(["break", "del"], "entry less"),
        pattern=words("[a-z]+"),
        min_count=1,
        n=9,
    ),
    "window_index": lambda: Call(module.window_index, groups=free(ids() // 2), length=1),
    "word_vectors": lambda: Call(module.word_vectors, ids=free(ids()), n_words=3, size=2, reach=2),
}
WITHOUT, ALLOWED = {}, {}
