"""The audio codec: EnCodec's encoder and quantiser, and one of two decoders."""
