"""Every architecture of transformers, tiny and random: does every method attach or refuse?"""
