"""Text from a stream of tokens. The only text held back is what could still begin a stop string or is not yet a whole character.

Everything is defined over characters, not over calls, so how the ids are divided into pushes never changes a result:

- A stop string counts if its last character arrives with token number `min_tokens` or a later one. The one that is complete
  first ends the text; of several complete at the same character, the longest.
- Text is released once no stop string can begin in it. Tokens are released together with their text: token `i` is released
  when every character it contributes to, including one shared with its neighbours, is released. Tokens without text go with
  the token before them. Log-probability entries and token ids are sent by that count.
- After a stop, tokens whose text lies entirely after the cut are never released; they still count as consumed.

Per character the cost is one state step per stop string, amortized; no text is decoded or searched twice.
"""

import codecs
from collections.abc import Sequence

from server.text.tokenizer import Tokenizer


class _StopString:
    """Recognizes one stop string, one character at a time (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # length of the longest prefix of `text` that the stream ends with; never all of it
        self._shorter = self._border_lengths(text)

    @staticmethod
    def _border_lengths(text: str) -> list[int]:
        """At `i`: the length of the longest proper prefix of `text` that is also a suffix of `text[: i + 1]`."""
        lengths = [0] * len(text)
        for i in range(1, len(text)):
            border = lengths[i - 1]
            while border and text[i] != text[border]:
                border = lengths[border - 1]
            lengths[i] = border + (text[i] == text[border])
        return lengths

    def feed(self, char: str) -> bool:
        """Whether the stop string ends with this character."""
        while self.matched and char != self.text[self.matched]:
            self.matched = self._shorter[self.matched - 1]
        self.matched += char == self.text[self.matched]
        if self.matched < len(self.text):
            return False
        self.matched = self._shorter[-1]
        return True


class Detokenizer:
    """The text of one sequence, as its tokens arrive.

    Do not push a token whose text the client must not see, such as a stop token that is not special.

    Args:
        tokenizer: the model's.
        stop: stop strings, none empty.
        min_tokens: stop strings that are complete before this many tokens are ignored.
        include_stop: cut after the stop string, not before it.
        skip_special_tokens: whether special tokens add no text.
        continues: the text continues a prompt, so a SentencePiece vocabulary's first space is kept.
            False for a text of its own: an echoed prompt, or a chat answer.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        continues: bool = True,
    ) -> None:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        self.stopped: str | None = None  # the stop string that ended the text
        self.consumed = 0  # tokens up to and including the one that ended the text
        self.released = 0  # tokens whose text has been handed out
        self.offsets: list[int] = []  # for each consumed token: the character at which its text begins
        self._ends: list[int] = []  # for each consumed token: how many characters to hand out before it is released
        self._tokenizer = tokenizer
        self._stops = [_StopString(text) for text in dict.fromkeys(stop)]
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip_next = tokenizer.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._handed_out = 0  # characters

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is now final. Once a stop string has ended the text, it is empty and nothing is consumed."""
        return "".join([self._push_one(token_id) for token_id in token_ids if self.stopped is None])

    def finish(self) -> str:
        """The rest: held-back text, and U+FFFD for a character that was never completed. Call once, at the end."""
        if self.stopped is not None:
            return ""
        text = self._absorb(self._utf8.decode(b"", final=True))
        if self.stopped is None:
            text += self._hand_out(self._held)
            self.released = self.consumed
        return text

    def _push_one(self, token_id: int) -> str:
        raw = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        self.consumed += 1
        self.offsets.append(self._handed_out + len(self._held))
        text = self._utf8.decode(raw)
        if self._strip_next and text:
            self._strip_next = False
            text = text.removeprefix(" ")
        incomplete = bool(self._utf8.getstate()[0])  # then one more character, whole or U+FFFD, is this token's too
        self._ends.append(self.offsets[-1] + len(text) + incomplete)
        return self._absorb(text)

    def _absorb(self, text: str) -> str:
        """Take in new text, look for a stop string, and hand out what is final."""
        if not self._stops:
            return self._hand_out(text)
        self._held += text
        start = len(self._held) - len(text)
        for i in range(start, len(self._held)):
            complete = [stop.text for stop in self._stops if stop.feed(self._held[i])]
            if complete and self.consumed >= self._min_tokens:
                return self._stop(max(complete, key=len), i + 1)
        return self._hand_out(self._held[: len(self._held) - max(stop.matched for stop in self._stops)])

    def _stop(self, stop: str, end: int) -> str:
        self.stopped = stop
        text = self._hand_out(self._held[: end if self._include_stop else end - len(stop)])
        self._held = ""
        while self.released < self.consumed and self.offsets[self.released] < self._handed_out:
            self.released += 1  # the token across the cut belongs to the text before it
        return text

    def _hand_out(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self._handed_out += len(text)
        while self.released < self.consumed and self._ends[self.released] <= self._handed_out:
            self.released += 1
        return text
