"""BERT (Devlin et al. 2019, arXiv 1810.04805), and what shares its class: MiniLM, BGE, E5, GTE, Arctic Embed 1."""

from configs.model.encoder import EncoderRules
from engine.models.encoder_family import EncoderFamily

FAMILY = EncoderFamily(
    name="bert",
    hf=EncoderRules(body="BertModel", classifier="BertForSequenceClassification"),
    prefix="bert.",
    embeddings={
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "types": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    layer={
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    layer_prefix="encoder.layer.{}.",
    head={"dense": "bert.pooler.dense", "labels": "classifier"},
    unused=("pooler.", "cls.", "classifier."),
)
