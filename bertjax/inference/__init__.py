"""The use of a trained model: fill masks, embed, classify, tag, answer, choose."""
