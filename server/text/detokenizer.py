"""Text from a stream of tokens. The only text held back is what could still begin a stop string or is not yet a whole character.

Everything is defined over characters, not over calls, so how the ids are divided into pushes never changes a result:

- A stop string counts if its last character arrives with token number `min_tokens` or a later one. The one that is complete
  first ends the text; of several complete at the same character, the longest.
- Text is released once no stop string can begin in it. Tokens are released together with their text: token `i` is released
  when every character it contributes to, including one shared with its neighbours, is released. Tokens without text go with
  the token before them. Log-probability entries and token ids are sent by that count.
- After a stop, tokens whose text lies entirely after the cut are never released; they still count as consumed.
- A stop string that spells a special token means the token, too, where the text does not show it: each stop string is looked for
  in the text and those unseen tokens that it spells itself. Other unseen tokens are not there for it.

Per character the cost is one state step per stop string, amortized; no text is decoded or searched twice.
"""

import codecs
from collections import deque
from collections.abc import Sequence

import msgspec

from server.text.tokenizer import Tokenizer

_quoted = msgspec.json.Encoder().encode


class _StopString:
    """Recognizes one stop string, one character at a time (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # length of the longest prefix of `text` that the stream ends with; never all of it
        self._shorter = self._border_lengths(text)
        self._fed = 0
        # Place and token of characters that are not shown.
        self._unseen: deque[tuple[int, int]] = deque(maxlen=len(text))

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
        self._fed += 1
        while self.matched and char != self.text[self.matched]:
            self.matched = self._shorter[self.matched - 1]
        self.matched += char == self.text[self.matched]
        if self.matched < len(self.text):
            return False
        self.matched = self._shorter[-1]
        return True

    def feed_unseen(self, char: str, token: int) -> bool:
        """`feed` for a character that the text does not show, of this token of the sequence."""
        self._unseen.append((self._fed, token))
        return self.feed(char)

    def unseen(self, length: int) -> tuple[int, int | None]:
        """Of the last `length` characters: how many the text does not show, and the first one's token if it is such a one."""
        begin = self._fed - length
        unseen = [(place, token) for place, token in self._unseen if place >= begin]
        return len(unseen), unseen[0][1] if unseen and unseen[0][0] == begin else None


class Detokenizer:
    """The text of one sequence, as its tokens arrive.

    Do not push a last token whose text the client must not see: it is for `finish`.

    Args:
        tokenizer: the model's.
        stop: stop strings, none empty.
        min_tokens: stop strings that are complete before this many tokens are ignored.
        include_stop: cut after the stop string, not before it.
        skip_special_tokens: whether special tokens add no text.
        shown_tokens: special tokens that add their text all the same.
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
        shown_tokens: frozenset[int] = frozenset(),
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
        self._skipped = tokenizer.special_ids - shown_tokens if skip_special_tokens else frozenset()
        self._strip_next = tokenizer.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._handed_out = 0  # characters

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is now final. Once a stop string has ended the text, it is empty and nothing is consumed."""
        return "".join([self._push_one(token_id) for token_id in token_ids if self.stopped is None])

    def finish(self, unseen: int | None = None) -> str:
        """The rest: held-back text, and U+FFFD for a character that was never completed. Call once, at the end.

        `unseen` is a last token that adds no text: what ended the sequence, if the client must not see it. If it is special, it
        may complete a stop string.
        """
        if self.stopped is not None:
            return ""
        text = self._absorb(self._utf8.decode(b"", final=True))
        if self.stopped is None and unseen is not None:
            self._count(0)
            text += self._absorb_unseen(unseen) if unseen in self._tokenizer.special_ids else ""
        if self.stopped is None:
            text += self._hand_out(self._held, self.consumed)
            self.released = self.consumed
        return text

    def _push_one(self, token_id: int) -> str:
        skipped = token_id in self._skipped
        text = self._utf8.decode(b"" if skipped else self._tokenizer.token_bytes(token_id))
        if self._strip_next and text:
            self._strip_next = False
            text = text.removeprefix(" ")
        incomplete = bool(self._utf8.getstate()[0])  # then one more character, whole or U+FFFD, is this token's too
        self._count(len(text) + incomplete)
        return self._absorb_unseen(token_id) if skipped else self._absorb(text)

    def _count(self, characters: int) -> None:
        """One more token, with so many characters."""
        self.consumed += 1
        self.offsets.append(self._handed_out + len(self._held))
        self._ends.append(self.offsets[-1] + characters)

    def _absorb(self, text: str) -> str:
        """Take in new text, look for a stop string, and hand out what is final."""
        if not self._stops:
            return self._hand_out(text, self.consumed)
        self._held += text
        start = len(self._held) - len(text)
        for i in range(start, len(self._held)):
            complete = [stop for stop in self._stops if stop.feed(self._held[i])]
            if complete and self.consumed >= self._min_tokens:
                return self._stop(complete, i + 1)
        return self._hand_out_final()

    def _absorb_unseen(self, token_id: int) -> str:
        """The same with a special token that the text does not show."""
        spelling = self._tokenizer.token_bytes(token_id).decode("utf-8", "replace") if self._stops else ""
        named = [stop for stop in self._stops if spelling in stop.text]
        for char in spelling if named else "":
            complete = [stop for stop in named if stop.feed_unseen(char, self.consumed - 1)]
            if complete and self.consumed >= self._min_tokens:
                return self._stop(complete, len(self._held))
        return self._hand_out_final()

    def _hand_out_final(self) -> str:
        """Hand out the text, and the tokens, in which no stop string can begin."""
        keep, tokens = 0, self.consumed
        for stop in self._stops:
            if stop.matched:
                unseen, beginning = stop.unseen(stop.matched)
                keep = max(keep, stop.matched - unseen)
                tokens = tokens if beginning is None else min(tokens, beginning)
        return self._hand_out(self._held[: len(self._held) - keep], tokens)

    def _stop(self, complete: list[_StopString], end: int) -> str:
        stop = max(complete, key=lambda stop: len(stop.text))
        self.stopped = stop.text
        unseen, beginning = stop.unseen(len(stop.text))
        before = self._held[: end - len(stop.text) + unseen]
        if self._include_stop:
            text = self._hand_out(before + stop.text, self.consumed)
        else:
            text = self._hand_out(before, self.consumed if beginning is None else beginning)
        self._held = ""
        while self.released < self.consumed and self.offsets[self.released] < self._handed_out:
            self.released += 1  # the token across the cut belongs to the text before it
        return text

    def _hand_out(self, text: str, tokens: int) -> str:
        """Hand out text, and tokens that end with it; of tokens no more than the first so many."""
        self._held = self._held[len(text) :]
        self._handed_out += len(text)
        while self.released < tokens and self._ends[self.released] <= self._handed_out:
            self.released += 1
        return text


class PlainDetokenizer:
    """What `Detokenizer` says of a text that nothing in it can end and of which nobody asks which token brought what, as of most
    answers: in a fraction of the time.

    Only the bytes of a character that is not complete are held back. The arguments are those of `Detokenizer`.
    """

    stopped: None = None

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, continues: bool = True) -> None:
        self.consumed = 0  # tokens
        self.offsets: list[int] = []  # nobody asks for them
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip_next = tokenizer.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._quoted_texts = tokenizer.quoted_texts
        self._alone = not self._strip_next  # the next token's text depends on nothing before it

    @property
    def released(self) -> int:
        """Tokens whose text has been handed out, as far as anybody cares."""
        return self.consumed

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is now final."""
        self.consumed += len(token_ids)
        pieces = [self._tokenizer.token_bytes(token_id) for token_id in token_ids if token_id not in self._skipped]
        text = self._utf8.decode(b"".join(pieces))
        if self._strip_next and text:
            self._strip_next = False
            text = text.removeprefix(" ")
        self._alone = not (self._strip_next or self._utf8.getstate()[0])
        return text

    def push_quoted(self, token_id: int) -> bytes:
        """The same for one token, as JSON; empty if there is no text."""
        if token_id in self._skipped:
            self.consumed += 1
            return b""
        quoted = self._quoted_texts[token_id] if self._alone else None
        if quoted is None:
            text = self.push((token_id,))
            return _quoted(text) if text else b""
        self.consumed += 1
        return quoted

    def finish(self, unseen: int | None = None) -> str:
        """U+FFFD for a character that was never completed. Call once, at the end. `unseen`: a last token without a text."""
        self.consumed += unseen is not None
        return self._utf8.decode(b"", final=True)


def text_of_tokens(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of these tokens, special ones included."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    return detokenizer.push(token_ids) + detokenizer.finish()
