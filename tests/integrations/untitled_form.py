"""An agent whose answers have a form without a title, as a program: STRATEGY, WHERE, PATH, URL."""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_openai import ChatOpenAI

import langchain_ibidem

FORM = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMS = {"tool": ToolStrategy(FORM), "provider": ProviderStrategy(FORM), "auto": FORM}

if __name__ == "__main__":
    strategy, where, path, url = sys.argv[1:]
    middleware = [langchain_ibidem.IbidemMiddleware(path=path)] if where == "middleware" else []
    if where == "global":
        langchain_ibidem.install(path=path)
    model = ChatOpenAI(model="m", api_key="k", base_url=url, max_retries=0)
    agent = create_agent(model, [], response_format=FORMS[strategy], middleware=middleware)
    asked = {"messages": [("user", "What is the capital of France?")]}
    print(agent.invoke(asked)["structured_response"]["city"])
