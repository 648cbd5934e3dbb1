/** Who gets in, where the token is kept, and what becomes of a page whose token is taken back. */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, launch, open, Service, signedIn, signIn, titled } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

test("a wrong token is refused as such, and a right one opens the fleet", async () => {
  const service = await Service.start(["show"]);
  const token = service.token(["read"]);
  const { page } = await open(browser, service.url);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Enter a token.").waitFor();
  await signIn(page, "pw_wrong");
  await page.getByText("The service does not accept this token.").waitFor();
  await signIn(page, "not a token at all");
  await page
    .getByText("That is not a token. Paste the whole line that power-service token new printed.")
    .waitFor();
  await signIn(page, token);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
});

test("a token without the read scope is refused with the reason", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await signIn(page, service.token(["write"]));
  await page.getByText("This token lacks the scope read, which this page needs.").waitFor();
});

/**
 * Where the token is kept: how many entries of the local storage, of the session storage, and which
 * cookies.
 */
const kept = (page: Page) =>
  page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);

const fleet = (page: Page) => page.getByRole("link", { name: "Harbour gate" });

test("the token is kept until the tab is closed; another tab asks again", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  expect(await kept(page)).toEqual([0, 1, ""]);
  await page.reload();
  await fleet(page).waitFor();
  const other = await page.context().newPage();
  await other.goto(service.url);
  await other.getByLabel("Token").waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
  await titled(page, "Sign in · Power");
  expect(await kept(page)).toEqual([0, 0, ""]);
});

test("a remembered device stays signed in; signing out ends that in every tab", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await page.getByLabel("Remember this device").check();
  await signIn(page, service.token(["read"]));
  await fleet(page).waitFor();
  expect(await kept(page)).toEqual([1, 0, ""]);
  const other = await page.context().newPage();
  await other.goto(service.url);
  await fleet(other).waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await other.getByText("You signed out in another tab.").waitFor();
  expect(await kept(other)).toEqual([0, 0, ""]);
});

test("signing in works in a browser that stores nothing for pages", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, "about:blank");
  await page.addInitScript(() => {
    const refused = { get: () => { throw new DOMException("denied", "SecurityError"); } }; // biome-ignore format: short
    for (const name of ["localStorage", "sessionStorage"])
      Object.defineProperty(window, name, refused);
  });
  await page.goto(service.url);
  await signIn(page, service.token(["read"]));
  await fleet(page).waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
});

test("the sign-in page shows the command that makes a token for this service's file", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await page.getByText(`--db ${service.db}`).waitFor();
});

test("no request is refused while the page loads, signed in or not", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, "about:blank");
  const statuses: string[] = [];
  page.on("response", (answer) => {
    if (answer.status() >= 400) statuses.push(`${answer.status()} ${answer.url()}`);
  });
  await page.goto(service.url);
  await signIn(page, service.token(["read"]));
  await fleet(page).waitFor();
  await page.reload();
  await fleet(page).waitFor();
  const open_ = await Service.start(["show"], "--no-auth");
  await page.goto(open_.url);
  await fleet(page).waitFor();
  expect(statuses).toEqual([]);
});

test("a link signs in once, leaves the address, and can be remembered", async () => {
  const service = await Service.start(["show"], "--open");
  const link = await service.link();
  const { page, faults } = await open(browser, "about:blank");
  let exchanges = 0;
  page.on("request", (request) => {
    if (request.method() === "POST" && request.url().endsWith("/v1/sign-in")) exchanges++;
  });
  await page.goto(link);
  await page
    .getByText("A link signed you in. You stay signed in until you close this tab.")
    .waitFor();
  await fleet(page).waitFor();
  await page.waitForURL((url) => url.hash === "#/");
  expect(await page.evaluate(() => history.length)).toBeLessThanOrEqual(2); // a blank page before it
  expect(await kept(page)).toEqual([0, 1, ""]);
  await page.getByRole("button", { name: "Remember this device" }).click();
  expect(await kept(page)).toEqual([1, 0, ""]);
  expect(await page.getByText("A link signed you in").count()).toBe(0);
  expect(exchanges).toBe(1);
  expect(faults).toEqual([]);

  const stranger = await open(browser, link);
  await stranger.page
    .getByText("The link did not sign you in: this link was used before")
    .waitFor();
  await stranger.page.getByLabel("Token").waitFor();
  await stranger.page.waitForURL((url) => url.hash === "#/");

  // In a tab that is open, whoever is signed in stays so, and is told.
  await page.goto(link);
  await page.getByText("The link did not sign you in: this link was used before").waitFor();
  await fleet(page).waitFor();
  await page.getByRole("button", { name: "Dismiss" }).click();
});

test("a token that is revoked ends the session with the reason", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  service.revokeAll();
  await page
    .getByText("The service no longer accepts this token. Sign in with another one.")
    .waitFor();
});

test("a service without tokens asks for none", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  expect(await page.getByRole("button", { name: "Sign out" }).count()).toBe(0);
});

test("a token bound to a device shows only that device", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await signIn(page, service.token(["read"], "edge-002"));
  await page.getByRole("link", { name: "North mast" }).waitFor();
  await page.getByText("1 device", { exact: true }).waitFor();
  expect(await page.locator(".fleet-item").count()).toBe(1);
});

test("the page says that the service does not answer, and tries again", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  await page.route("**/v1/sign-in", (route) => route.abort());
  await page.reload();
  await page.getByText("The service does not answer").waitFor();
  await page.unroute("**/v1/sign-in");
  await page.getByRole("button", { name: "Try again" }).click();
  await eventually(() => page.getByRole("link", { name: "Harbour gate" }).isVisible(), "the fleet");
});
