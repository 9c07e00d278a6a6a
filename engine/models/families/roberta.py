"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT whose positions begin behind the padding token's id, with a head of its own."""

from configs.model.encoder import EncoderRules
from engine.models.encoder_family import EncoderFamily
from engine.models.families import bert

FAMILY = EncoderFamily(
    name="roberta",
    hf=EncoderRules(body="RobertaModel", classifier="RobertaForSequenceClassification", pad_token_id=1),
    prefix="roberta.",
    embeddings=bert.FAMILY.embeddings,
    layer=bert.FAMILY.layer,
    layer_prefix=bert.FAMILY.layer_prefix,
    head={"dense": "classifier.dense", "labels": "classifier.out_proj"},
    unused=("pooler.", "lm_head.", "classifier."),
)
