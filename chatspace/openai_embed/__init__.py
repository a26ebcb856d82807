"""Kind embed_openai: vectors from an endpoint that speaks OpenAI's embeddings API."""
