"""XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116): RoBERTa over a hundred languages; BGE-M3's dense vectors, multilingual E5,
Arctic Embed 2, BGE's rerankers."""

from dataclasses import replace

from engine.models.families import roberta

FAMILY = replace(
    roberta.FAMILY,
    name="xlm-roberta",
    hf=replace(roberta.FAMILY.hf, body="XLMRobertaModel", classifier="XLMRobertaForSequenceClassification"),
)
