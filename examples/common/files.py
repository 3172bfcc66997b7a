"""A folder of md, txt and pdf files for LlamaIndex."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.readers.base import BaseReader
from pypdf import PdfReader

ENDINGS = [".md", ".txt", ".pdf"]

# It warns that `llama-index-readers-file` is missing, whose reader of PDF files asks for pandas and more.
logging.getLogger("llama_index.core.readers.file.base").setLevel(logging.ERROR)


class Pages(BaseReader):
    """The pages of a PDF file, a document each, as LlamaIndex's own reader gives them."""

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None) -> list[Document]:
        """All that hold text."""
        with file.open("rb") as opened:
            texts = [page.extract_text().strip() for page in PdfReader(opened).pages]
        return [
            Document(text=text, metadata={**(extra_info or {}), "page_label": str(number)})
            for number, text in enumerate(texts, 1)
            if text
        ]


def read_files(folder: Path) -> list[Document]:
    """The files of a folder, by their names; the model and the embedder see their texts alone."""
    if not any(path.suffix in ENDINGS for path in folder.rglob("*")):
        return []
    named: Any = {"required_exts": ENDINGS, "filename_as_id": True, "recursive": True}
    found = SimpleDirectoryReader(folder, file_extractor={".pdf": Pages()}, **named).load_data()
    for document in found:
        names = list(document.metadata)
        document.excluded_llm_metadata_keys = document.excluded_embed_metadata_keys = names
    return found
