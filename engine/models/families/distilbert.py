"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): half of BERT's layers, no types of tokens."""

from configs.model.encoder import EncoderRules
from engine.models.encoder_family import EncoderFamily

FAMILY = EncoderFamily(
    name="distilbert",
    hf=EncoderRules(
        body="DistilBertModel",
        classifier="DistilBertForSequenceClassification",
        types=0,
        keys={
            "hidden_size": "dim",
            "intermediate_size": "hidden_dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "hidden_act": "activation",
        },
    ),
    prefix="distilbert.",
    embeddings={
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    layer={
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    layer_prefix="transformer.layer.{}.",
    head={"dense": "pre_classifier", "labels": "classifier"},
    head_activation="relu",
    unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "pre_classifier.", "classifier."),
)
