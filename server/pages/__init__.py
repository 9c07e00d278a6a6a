"""Pages for people: each is one self-contained document, put together from the files of this folder."""
