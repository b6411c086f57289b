"""OpenAI's dialect, with the extensions that local servers share."""
